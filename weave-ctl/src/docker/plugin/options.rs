//! What networks were made with: kept in a file, so that a container can be started again after a restart of ours
//! while Docker itself is starting and cannot be asked.

use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value};
use tokio::sync::Notify;

/// In the data directory.
pub const FILE_NAME: &str = "weave-networks.json";
/// Is there a route for multicast?
pub const MULTICAST: &str = "works.weave.multicast";
/// Where Docker puts the options of `docker network create`.
const GENERIC: &str = "com.docker.network.generic";

/// Networks by their ID: is there a route for multicast?
#[derive(Debug, Default)]
pub struct Networks {
    known: Mutex<BTreeMap<String, bool>>,
    file: Option<PathBuf>,
    added: Notify,
}

impl Networks {
    /// Those in the file, which is written with each change. A file that makes no sense is as none: Docker is asked.
    #[must_use]
    pub fn load(file: PathBuf) -> Self {
        let known = std::fs::read(&file).ok();
        let known = known.and_then(|text| serde_json::from_slice(&text).ok());
        Self {
            known: Mutex::new(known.unwrap_or_default()),
            file: Some(file),
            added: Notify::new(),
        }
    }

    /// Has that network a route for multicast? `None`: it is not known.
    #[must_use]
    pub fn multicast(&self, id: &str) -> Option<bool> {
        self.lock().get(id).copied()
    }

    /// Are there none?
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.lock().is_empty()
    }

    /// Waits until there is one.
    pub async fn wait_for_one(&self) {
        loop {
            let added = self.added.notified();
            if !self.is_empty() {
                return;
            }
            added.await;
        }
    }

    /// Remembers a network.
    pub fn add(&self, id: &str, multicast: bool) {
        self.change(|known| known.insert(id.to_owned(), multicast) != Some(multicast));
        self.added.notify_waiters();
    }

    /// Forgets one.
    pub fn remove(&self, id: &str) {
        self.change(|known| known.remove(id).is_some());
    }

    fn change(&self, act: impl FnOnce(&mut BTreeMap<String, bool>) -> bool) {
        let mut known = self.lock();
        if act(&mut known)
            && let Some(file) = &self.file
            && let Err(error) = write(file, &known)
        {
            tracing::warn!("cannot write {}: {error}", file.display());
        }
    }

    fn lock(&self) -> MutexGuard<'_, BTreeMap<String, bool>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn write(file: &Path, known: &BTreeMap<String, bool>) -> io::Result<()> {
    let new = file.with_extension("json.new");
    std::fs::write(&new, serde_json::to_vec(known)?)?;
    std::fs::rename(new, file)
}

/// An option with a value that makes no sense.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unrecognized value \"{value}\" for option {MULTICAST}")]
pub struct Unrecognised {
    value: String,
}

/// The multicast option among those of a `CreateNetwork` request.
///
/// # Errors
/// If it is neither true nor false.
pub fn of_request(options: Option<&Map<String, Value>>) -> Result<bool, Unrecognised> {
    let generic = options.and_then(|options| options.get(GENERIC)?.as_object());
    let generic = generic.into_iter().flatten();
    of_options(generic.map(|(name, value)| {
        let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        (name.as_str(), text)
    }))
}

/// The multicast option among those of a network.
///
/// # Errors
/// If it is neither true nor false.
pub fn of_options<'a>(options: impl Iterator<Item = (&'a str, String)>) -> Result<bool, Unrecognised> {
    let mut multicast = false;
    for (name, value) in options {
        match name {
            MULTICAST => multicast = boolean(&value).ok_or(Unrecognised { value })?,
            _ => tracing::warn!("option {name} of a Docker network is not one of ours"),
        }
    }
    Ok(multicast)
}

/// As Go reads them; the option alone means yes.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "" | "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(value: &Value) -> Result<bool, String> {
        of_request(value.as_object()).map_err(|e| e.to_string())
    }

    #[test]
    fn multicast_or_not() {
        assert_eq!(of_request(None), Ok(false));
        assert_eq!(read(&json!({"other": 1})), Ok(false));
        for (text, expected) in [
            ("", true),
            ("true", true),
            ("1", true),
            ("F", false),
            ("false", false),
        ] {
            let options = json!({GENERIC: {MULTICAST: text, "else": "x"}});
            assert_eq!(read(&options), Ok(expected), "{text:?}");
        }
        let error = "unrecognized value \"maybe\" for option works.weave.multicast";
        assert_eq!(
            read(&json!({GENERIC: {MULTICAST: "maybe"}})),
            Err(error.to_owned())
        );
        assert_eq!(read(&json!({GENERIC: null})), Ok(false));
    }

    #[test]
    fn networks_outlive_us() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join(FILE_NAME);
        let networks = Networks::load(file.clone());
        networks.add("a", true);
        networks.add("b", false);
        networks.remove("b");
        networks.remove("c");
        let again = Networks::load(file.clone());
        assert_eq!((again.multicast("a"), again.multicast("b")), (Some(true), None));
        std::fs::write(&file, "nonsense").unwrap();
        assert_eq!(Networks::load(file).multicast("a"), None);
    }
}
