//! Sizes of packets.

use std::collections::BTreeMap;

use super::{Finding, View, list};

pub(super) fn check(view: &View<'_>) -> Vec<Finding> {
    let mut found = Vec::new();
    let Some(fast) = &view.report.fast_datapath else {
        return found;
    };
    let ours = fast.mtu.bytes;
    let mut differ: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    let mut narrow: BTreeMap<u32, Vec<String>> = BTreeMap::new();
    for remote in view.remotes() {
        let name = view.names.of(&remote.name);
        if let Some(mtu) = remote.mtu.filter(|mtu| *mtu != ours) {
            differ.entry(mtu).or_default().push(name.clone());
        }
        // Sleeve cuts frames to what the path carries.
        if let Some(mtu) = remote
            .path_mtu
            .filter(|mtu| remote.overlay != "sleeve" && ours + weave_common::OVERHEAD > *mtu)
        {
            narrow.entry(mtu).or_default().push(name);
        }
    }
    for (mtu, names) in narrow {
        found.push(
            Finding::problem(
                "mtu-too-large",
                format!(
                    "the overlay's MTU is {ours} ({}); with {} bytes of headers that does not fit the path MTU of \
                     {mtu} to {}",
                    fast.mtu.reason,
                    weave_common::OVERHEAD,
                    list(&names)
                ),
            )
            .why("large packets take the slow path, or are answered with 'too big'")
            .run(format!(
                "weave launch --mtu auto, or --mtu {} on all hosts",
                mtu.saturating_sub(weave_common::OVERHEAD)
            )),
        );
    }
    for (mtu, names) in differ {
        found.push(
            Finding::warning(
                "mtu-differs",
                format!(
                    "the overlay's MTU is {ours} here ({}), and {mtu} on {}",
                    fast.mtu.reason,
                    list(&names)
                ),
            )
            .why("large packets from the wider side are answered with 'too big' before they fit")
            .run(format!("weave launch --mtu {} on all hosts", ours.min(mtu))),
        );
    }
    found
}
