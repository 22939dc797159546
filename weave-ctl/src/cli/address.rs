//! The address arguments of attach and detach (cli.md 3.1).

use super::Failure;
use crate::ipam::address::Cidr;

/// One address argument.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AddressArg {
    /// Exactly this address.
    Plain(Cidr),
    /// One in this subnet; `None`: in the default subnet.
    Net(Option<Cidr>),
}

/// Takes the leading addresses off the arguments. None at all means one in the default subnet.
pub fn leading(args: &[String]) -> Result<(Vec<AddressArg>, &[String]), Failure> {
    let count = args.iter().take_while(|a| is_address(a)).count();
    let (addresses, rest) = args.split_at(count);
    if addresses.is_empty() {
        return Ok((vec![AddressArg::Net(None)], rest));
    }
    let addresses: Result<Vec<AddressArg>, Failure> = addresses.iter().map(|a| parse(a)).collect();
    Ok((addresses?, rest))
}

fn parse(text: &str) -> Result<AddressArg, Failure> {
    let bad = |e: crate::ipam::address::CidrError| Failure::new(1, e.to_string());
    match text.strip_prefix("net:") {
        Some("default") => Ok(AddressArg::Net(None)),
        Some(subnet) => Ok(AddressArg::Net(Some(Cidr::parse_subnet(subnet).map_err(bad)?))),
        None => Ok(AddressArg::Plain(
            text.strip_prefix("ip:").unwrap_or(text).parse().map_err(bad)?,
        )),
    }
}

/// Four groups of one to three digits, `/`, one or two digits; `ip:` or `net:` before it, or
/// `net:default`.
fn is_address(text: &str) -> bool {
    let digits =
        |t: &str, most: usize| (1..=most).contains(&t.len()) && t.bytes().all(|b| b.is_ascii_digit());
    let cidr = text
        .strip_prefix("ip:")
        .or_else(|| text.strip_prefix("net:"))
        .unwrap_or(text);
    text == "net:default"
        || cidr.split_once('/').is_some_and(|(addr, len)| {
            digits(len, 2) && addr.split('.').count() == 4 && addr.split('.').all(|group| digits(group, 3))
        })
}

/// The failure about an argument that is left: one that lacks only the length of its prefix is told so.
pub fn left_over(rest: &[String], otherwise: &str) -> Failure {
    let bare = |text: &&String| {
        let ip = text.strip_prefix("ip:").or_else(|| text.strip_prefix("net:"));
        ip.unwrap_or(text).parse::<std::net::Ipv4Addr>().is_ok()
    };
    Failure::usage(&match rest.iter().find(bare) {
        Some(text) => format!("'{text}' has no prefix length: {text}/12, for example\n\n"),
        None => format!("{otherwise}\n\n"),
    })
}

/// Addresses as printed: without prefix length, in one line.
pub fn line(cidrs: &[Cidr]) -> String {
    let texts: Vec<String> = cidrs
        .iter()
        .map(|c| std::net::Ipv4Addr::from(c.addr).to_string())
        .collect();
    format!("{}\n", texts.join(" "))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn leading_arguments() {
        let plain = |t: &str| AddressArg::Plain(t.parse().unwrap());
        let net = |t: &str| AddressArg::Net(Some(t.parse().unwrap()));
        for (args, addresses, left) in [
            ("c", vec![AddressArg::Net(None)], "c"),
            ("net:default c", vec![AddressArg::Net(None)], "c"),
            (
                "10.0.0.1/8 ip:10.0.0.2/8 c",
                vec![plain("10.0.0.1/8"), plain("10.0.0.2/8")],
                "c",
            ),
            (
                "net:10.2.0.0/16 10.0.0.1/24 c d",
                vec![net("10.2.0.0/16"), plain("10.0.0.1/24")],
                "c d",
            ),
            ("c 10.0.0.1/8", vec![AddressArg::Net(None)], "c 10.0.0.1/8"),
            ("10.0.0.1 c", vec![AddressArg::Net(None)], "10.0.0.1 c"),
            ("ip:default c", vec![AddressArg::Net(None)], "ip:default c"),
            ("netns:x", vec![AddressArg::Net(None)], "netns:x"),
        ] {
            let args: Vec<String> = args.split(' ').map(str::to_owned).collect();
            let (found, rest) = leading(&args).unwrap();
            assert_eq!((found, rest.join(" ")), (addresses, left.to_owned()));
        }
    }

    #[test]
    fn addresses_that_only_look_like_some() {
        for (text, error) in [
            ("10.0.0.300/8", "invalid CIDR address: 10.0.0.300/8"),
            ("10.0.0.3/64", "invalid CIDR address: 10.0.0.3/64"),
            (
                "net:10.2.3.2/30",
                "invalid subnet - bits after network prefix are not all zero: 10.2.3.2/30",
            ),
            (
                "net:10.2.3.2/31",
                "invalid subnet - smaller than minimum size 4: 10.2.3.2/31",
            ),
        ] {
            assert_eq!(leading(&[text.to_owned()]).unwrap_err(), Failure::new(1, error));
        }
    }

    #[test]
    fn what_is_left() {
        for (rest, reason) in [
            (
                "10.0.0.1 c",
                "'10.0.0.1' has no prefix length: 10.0.0.1/12, for example\n\n",
            ),
            (
                "c net:10.0.0.0",
                "'net:10.0.0.0' has no prefix length: net:10.0.0.0/12, for example\n\n",
            ),
            ("c d", "other\n\n"),
        ] {
            let rest: Vec<String> = rest.split(' ').map(str::to_owned).collect();
            assert_eq!(left_over(&rest, "other"), Failure::usage(reason));
        }
    }

    #[test]
    fn printed() {
        assert_eq!(
            line(&["10.0.0.1/8", "10.2.0.7/16"].map(|t| t.parse().unwrap())),
            "10.0.0.1 10.2.0.7\n"
        );
        assert_eq!(line(&[]), "\n");
    }
}
