//! Where the files are that come with the program: the BPF object and the wait helper.

use std::path::{Path, PathBuf};

/// No such file was found; the text says how to get one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "no {name}: looked for {}; build it with `cargo xtask build-ebpf`, install it with \
     `cargo xtask install`, or name it in {variable}",
    .looked.iter().map(|p| p.display().to_string()).collect::<Vec<_>>().join(", ")
)]
pub struct NotFound {
    /// The file's name.
    pub name: &'static str,
    /// The variable that could have named it.
    pub variable: &'static str,
    /// Every path tried.
    pub looked: Vec<PathBuf>,
}

/// The file that the environment variable names, else the one in a development tree's `target/bpf`, beside the
/// executable, or in `../lib/weave`.
///
/// # Errors
/// If there is none.
pub fn find(name: &'static str, variable: &'static str) -> Result<PathBuf, NotFound> {
    let named = std::env::var_os(variable).map(PathBuf::from);
    let exe = std::env::current_exe().unwrap_or_default();
    let looked = match named {
        Some(path) => vec![path],
        None => candidates(&exe, name),
    };
    let found = looked.iter().find(|path| path.is_file()).cloned();
    found.ok_or(NotFound {
        name,
        variable,
        looked,
    })
}

fn candidates(exe: &Path, name: &str) -> Vec<PathBuf> {
    let dir = exe.parent().unwrap_or(Path::new("/"));
    // target/debug/weave-ctl, and target/debug/deps/TEST for tests. First, as beside these there is a wait helper that
    // needs libraries: cargo builds it with everything else.
    let tree = dir
        .ancestors()
        .skip(1)
        .take(2)
        .map(|up| up.join("bpf").join(name));
    tree.chain([dir.join(name), dir.join("../lib/weave").join(name)])
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_file_says_where_it_was_looked_for_and_what_to_do() {
        let looked = candidates(Path::new("/usr/local/bin/weave-ctl"), "weave.bpf.o");
        assert_eq!(
            looked.last().map(PathBuf::as_path),
            Some(Path::new("/usr/local/bin/../lib/weave/weave.bpf.o"))
        );
        let tree = candidates(Path::new("/src/target/debug/weave-ctl"), "weave-wait");
        assert_eq!(
            tree.first().map(PathBuf::as_path),
            Some(Path::new("/src/target/bpf/weave-wait"))
        );
        let text = NotFound {
            name: "weave.bpf.o",
            variable: "WEAVE_BPF_OBJECT",
            looked,
        }
        .to_string();
        assert!(
            text.contains("/usr/local/bin/weave.bpf.o") && text.contains("cargo xtask build-ebpf"),
            "{text}"
        );
    }
}
