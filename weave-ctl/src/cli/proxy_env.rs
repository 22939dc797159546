//! `weave env` and `weave config`: what makes Docker's client use the proxy (cli.md 4.5).

use super::client::DISABLED;
use super::env::DockerEnv;
use super::{Context, Failure, Outcome, note, out};

/// Print what makes Docker's client in this shell use the proxy: eval "$(weave env)"
#[derive(Debug, clap::Args)]
#[command(
    after_help = "Examples:\n  eval \"$(weave env)\"\n  docker run -d --name web nginx\n  eval \"$(weave env --restore)\""
)]
pub(crate) struct EnvArgs {
    /// Print what undoes it
    #[arg(long)]
    restore: bool,
}

/// Print the option that makes a Docker client use the proxy
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:\n  docker $(weave config) run -d --name web nginx")]
pub(crate) struct ConfigArgs {}

pub(super) async fn env(args: EnvArgs, context: &Context) -> Outcome {
    let docker = &context.env.docker;
    if args.restore {
        return match &docker.original {
            Some(original) => {
                out(&format!("DOCKER_HOST={original}\n"));
                Ok(())
            }
            None => Err(Failure::new(
                1,
                "Nothing to restore. This is most likely because there was no preceding invocation of 'eval $(weave \
                 env)' in this shell.",
            )),
        };
    }
    match address(context).await {
        Ok(Some(address)) => {
            out(&exports(&address, docker.client.as_deref().unwrap_or_default()));
            Ok(())
        }
        Ok(None) => Ok(()),
        // For use within another command: nothing that a shell would run.
        Err(failure) => {
            note(failure.text.trim_end());
            Ok(())
        }
    }
}

pub(super) async fn config(context: &Context) -> Outcome {
    match address(context).await? {
        Some(address) => {
            out(&format!("-H={address}\n"));
            Ok(())
        }
        None => Err(Failure::silent(1)),
    }
}

/// Who points at the proxy already keeps what was before.
fn exports(address: &str, present: &str) -> String {
    match present == address {
        true => format!("export DOCKER_HOST={address} \n"),
        false => format!("export DOCKER_HOST={address} ORIG_DOCKER_HOST={present}\n"),
    }
}

/// The proxy's first address; `None`: it does not run.
async fn address(context: &Context) -> Result<Option<String>, Failure> {
    let all = addresses(context).await?;
    Ok(all.and_then(|all| all.into_iter().next()))
}

/// All addresses of the proxy, as clients can use them; `None`: it does not run.
pub(super) async fn addresses(context: &Context) -> Result<Option<Vec<String>>, Failure> {
    let docker = &context.env.docker;
    match context.env.client().call("GET", "/proxyaddrs", &[]).await {
        Ok(lines) => Ok(Some(lines.lines().map(|line| reachable(line, docker)).collect())),
        Err(Failure { code: DISABLED, .. }) => Ok(None),
        Err(failure) => Err(failure),
    }
}

/// Where it listens everywhere: at the host that Docker is at.
fn reachable(address: &str, docker: &DockerEnv) -> String {
    address.replace("0.0.0.0", &docker.proxy_host())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_for_the_shell() {
        let (a, b) = ("unix:///a", "tcp://b:1");
        assert_eq!(
            exports(a, b),
            "export DOCKER_HOST=unix:///a ORIG_DOCKER_HOST=tcp://b:1\n"
        );
        assert_eq!(exports(a, ""), "export DOCKER_HOST=unix:///a ORIG_DOCKER_HOST=\n");
        assert_eq!(exports(a, a), "export DOCKER_HOST=unix:///a \n");
    }

    #[test]
    fn addresses_that_clients_can_use() {
        for (client, given, expected) in [
            (None, None, "tcp://127.0.0.1:12375"),
            (Some("unix:///x"), None, "tcp://127.0.0.1:12375"),
            (Some("tcp://192.0.2.1:2375"), None, "tcp://192.0.2.1:12375"),
            (Some("192.0.2.1:2375"), None, "tcp://192.0.2.1:12375"),
            (Some("tcp://192.0.2.1:2375"), Some("host"), "tcp://host:12375"),
        ] {
            let docker = DockerEnv {
                client: client.map(str::to_owned),
                given_proxy_host: given.map(str::to_owned),
                ..DockerEnv::default()
            };
            assert_eq!(
                reachable("tcp://0.0.0.0:12375", &docker),
                expected,
                "{client:?} {given:?}"
            );
            assert_eq!(reachable("unix:///x", &docker), "unix:///x");
        }
    }
}
