//! Where the BPF object is.

use std::path::PathBuf;

use crate::artifact;
pub use crate::artifact::NotFound;

/// File name of the object.
pub const FILE_NAME: &str = "weave.bpf.o";

/// The object named by `WEAVE_BPF_OBJECT`, else the one that came with this program.
///
/// # Errors
/// If there is none.
pub fn find() -> Result<PathBuf, NotFound> {
    artifact::find(FILE_NAME, "WEAVE_BPF_OBJECT")
}
