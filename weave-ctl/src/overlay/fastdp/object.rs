//! Where the BPF object is.

use std::path::{Path, PathBuf};

/// File name of the object.
pub const FILE_NAME: &str = "weave.bpf.o";

/// No object was found; the text says how to get one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no BPF object: looked for {}; build it with `cargo xtask build-ebpf`, install it with \
     `cargo xtask install`, or name it in WEAVE_BPF_OBJECT",
    .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct NotFound {
    /// Every path tried.
    pub looked: Vec<PathBuf>,
}

/// The object named by `WEAVE_BPF_OBJECT`, else the one beside the executable, in
/// `../lib/weave`, or in a development tree's `target/bpf`.
pub fn find() -> Result<PathBuf, NotFound> {
    let named = std::env::var_os("WEAVE_BPF_OBJECT").map(PathBuf::from);
    let exe = std::env::current_exe().unwrap_or_default();
    let candidates = match named {
        Some(path) => vec![path],
        None => candidates(&exe),
    };
    candidates
        .iter()
        .find(|path| path.is_file())
        .cloned()
        .ok_or(NotFound { looked: candidates })
}

fn candidates(exe: &Path) -> Vec<PathBuf> {
    let dir = exe.parent().unwrap_or(Path::new("/"));
    let mut found = vec![dir.join(FILE_NAME), dir.join("../lib/weave").join(FILE_NAME)];
    // target/debug/weave-ctl, and target/debug/deps/TEST for tests.
    found.extend(
        dir.ancestors()
            .skip(1)
            .take(2)
            .map(|up| up.join("bpf").join(FILE_NAME)),
    );
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_object_says_where_it_was_looked_for_and_what_to_do() {
        let looked = candidates(Path::new("/usr/local/bin/weave-ctl"));
        assert_eq!(looked[1], Path::new("/usr/local/bin/../lib/weave/weave.bpf.o"));
        let text = NotFound { looked }.to_string();
        assert!(
            text.contains("/usr/local/bin/weave.bpf.o") && text.contains("cargo xtask build-ebpf"),
            "{text}"
        );
    }
}
