//! `weave launch` (cli.md 4.3): options, checks, the daemon in the background or here.

mod dns;
mod duration;
mod flags;
mod options;
mod other_flags;
mod password;
mod plugin;
mod proxy;
mod start;
#[cfg(test)]
mod tests;

pub use dns::DnsOptions;
pub use flags::LaunchArgs;
pub(super) use flags::{flag_error, normalised};
pub use options::{DEFAULT_RANGE, IpamOptions, LaunchOptions, Mtu};
pub(super) use other_flags::{find, with_other_flags};
pub use plugin::{PluginOptions, driver_name};
pub use proxy::{ProxyOptions, Run};
pub(super) use start::launch;
