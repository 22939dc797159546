//! `weave dns-lookup` and `weave dns-args` (cli.md 4.6, 4.11).

use super::client::DISABLED;
use super::{Context, Failure, Outcome, out};

/// Print the addresses that a name has in WeaveDNS, one a line
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  weave dns-lookup web\n  weave dns-lookup web.weave.local")]
pub(crate) struct DnsLookupArgs {
    /// With or without the domain
    #[arg(value_name = "NAME")]
    name: String,
}

/// Print the options that make a container of Docker use WeaveDNS
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  docker run $(weave dns-args) --hostname web.weave.local IMAGE")]
pub(crate) struct DnsArgsArgs {}

pub(super) async fn dns_args(context: &Context) -> Outcome {
    let client = context.env.client();
    let ask = async |given: &Option<String>, path| match given {
        Some(given) => Ok(given.clone()),
        None => client.call("GET", path, &[]).await,
    };
    let both = async {
        let domain = ask(&context.env.dns_domain, "/domain").await?;
        Ok((ask(&context.env.dns_address, "/dns-address").await?, domain))
    };
    match both.await {
        Ok((address, domain)) => {
            out(&format!("--dns={} --dns-search={}", address.trim(), domain.trim()));
            Ok(())
        }
        Err(Failure { code: DISABLED, .. }) => Ok(()),
        // For use within another command: nothing but the options.
        Err(failure) => Err(Failure::silent(failure.code)),
    }
}
