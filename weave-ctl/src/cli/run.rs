//! `weave run`, as in the first releases: `docker run`, with the container on the network before its command
//! begins. It is `docker run` through the daemon's Docker API proxy, and ends as that does.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::process::Command;

use super::proxy_env::addresses;
use super::{Context, Failure, address, block_on};

/// What `docker run` itself gives when it cannot run anything.
const DOCKER_FAILED: u8 = 125;
const VARIABLE: &str = "WEAVE_CIDR";

/// Run a new container of Docker on the network
#[derive(Debug, clap::Args)]
#[command(
    disable_help_flag = true,
    after_help = "Addresses as for attach. What follows goes to 'docker run' as it is. The command begins when the\n\
    container has its addresses; its hosts file has them, and its name is in WeaveDNS.\n\n\
    Examples:\n  weave run -d --name c1 busybox top\n  weave run net:10.2.0.0/16 -ti ubuntu"
)]
pub(crate) struct RunArgs {
    /// Give it no name in WeaveDNS, and leave its nameservers alone
    #[arg(long)]
    without_dns: bool,
    /// As it always is: put its addresses into its hosts file
    #[arg(long)]
    rewrite_hosts: bool,
    /// Addresses, then the options of 'docker run', the image, and the command
    #[arg(
        required = true,
        trailing_var_arg = true,
        allow_hyphen_values = true,
        value_name = "ADDR ... DOCKER-RUN-ARGS"
    )]
    args: Vec<String>,
}

pub(super) fn run(args: &RunArgs, context: &Context) -> Result<(), Failure> {
    let command = docker_run(&args.args, args.without_dns)?;
    let endpoint = block_on(proxy(context))?;
    let error = Command::new("docker")
        .args(command)
        .env("DOCKER_HOST", endpoint)
        .exec();
    let text = match error.kind() {
        io::ErrorKind::NotFound => {
            "the command docker is missing: 'weave run' needs it; without Docker, make a namespace with 'ip netns add \
             NAME' and give it to 'weave attach netns:NAME'"
                .to_owned()
        }
        _ => format!("cannot run docker: {error}"),
    };
    Err(Failure::new(DOCKER_FAILED, text))
}

/// The arguments of `docker`.
fn docker_run(args: &[String], without_dns: bool) -> Result<Vec<String>, Failure> {
    // As it checks them.
    let (_, rest) = address::leading(args)?;
    let addresses = args.get(..args.len() - rest.len()).unwrap_or_default();
    if rest.is_empty() {
        return Err(Failure::usage("an image is missing\n\n"));
    }
    let mut command = vec!["run".to_owned()];
    // Also where containers that ask for nothing get no address. The first one counts.
    if !addresses.is_empty() || !rest.iter().any(|arg| arg.contains(VARIABLE)) {
        command.push(format!("--env={VARIABLE}={}", addresses.join(" ")));
    }
    if without_dns {
        command.push("--env=WEAVE_DNS=none".to_owned());
    }
    command.extend_from_slice(rest);
    Ok(command)
}

/// Where the daemon's proxy listens; a socket rather than a port.
async fn proxy(context: &Context) -> Result<String, Failure> {
    let addresses = addresses(context).await?.unwrap_or_default();
    let socket = addresses.iter().find(|address| address.starts_with("unix://"));
    let found = socket.or(addresses.first());
    found.cloned().ok_or_else(|| {
        let text = "the Docker API proxy, by which 'weave run' works, is not there: see 'weave status'. It comes with \
                    'weave launch', unless that is given --proxy=false or an empty --docker-api. Without it: 'docker \
                    run', then 'weave attach'.";
        Failure::new(DOCKER_FAILED, text)
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::words;
    use super::*;

    #[test]
    fn what_docker_is_told() {
        for (args, told) in [
            (
                "-d --name c1 busybox top",
                "run --env=WEAVE_CIDR= -d --name c1 busybox top",
            ),
            ("-e WEAVE_CIDR=none busybox", "run -e WEAVE_CIDR=none busybox"),
        ] {
            assert_eq!(docker_run(&words(args), false).unwrap(), words(told));
        }
        let two = docker_run(&words("10.2.1.1/24 net:default -ti box sh"), true).unwrap();
        assert_eq!(two[1], "--env=WEAVE_CIDR=10.2.1.1/24 net:default");
        assert_eq!(two[2..], words("--env=WEAVE_DNS=none -ti box sh"));
        for wrong in ["", "10.2.1.1/24", "net:10.2.1.1/24 box"] {
            assert_eq!(docker_run(&words(wrong), false).unwrap_err().code, 1, "{wrong}");
        }
    }
}
