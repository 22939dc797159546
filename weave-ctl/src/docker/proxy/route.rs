//! Which requests are not simply passed on (control.md 4.3).

use super::inspect::Within;

/// What a request is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Route<'a> {
    Create,
    /// Start or restart of this container.
    Start(&'a str),
    Inspect(Within),
    /// In this container.
    ExecCreate(&'a str),
    Other,
}

impl<'a> Route<'a> {
    /// By the path only, with or without a version before it.
    pub(super) fn of(path: &'a str) -> Self {
        let mut parts = path.strip_prefix('/').unwrap_or_default().split('/').peekable();
        if parts.peek().is_some_and(|part| is_version(part)) {
            parts.next();
        }
        let parts: [Option<&str>; 4] = std::array::from_fn(|_| parts.next());
        match parts {
            [Some("containers"), Some("create"), None, _] => Self::Create,
            [Some("containers"), Some(id), Some("start" | "restart"), None] => Self::Start(id),
            [Some("containers"), Some(_), Some("json"), None] => Self::Inspect(Within::Whole),
            [Some("containers"), Some(id), Some("exec"), None] => Self::ExecCreate(id),
            [Some("exec"), Some(_), Some("json"), None] => Self::Inspect(Within::Container),
            _ => Self::Other,
        }
    }
}

/// `v1.41`
fn is_version(part: &str) -> bool {
    part.strip_prefix('v')
        .is_some_and(|number| !number.is_empty() && number.bytes().all(|b| b.is_ascii_digit() || b == b'.'))
}

/// The value of a parameter in a query.
pub(super) fn parameter(query: &str, name: &str) -> Option<String> {
    let pair = |pair: &str| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (decoded(key) == name).then(|| decoded(value))
    };
    query.split('&').find_map(pair)
}

fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        let mut escaped = rest.clone();
        let hex = |b: Option<u8>| b.and_then(|b| char::from(b).to_digit(16));
        match (byte, hex(escaped.next()), hex(escaped.next())) {
            (b'%', Some(high), Some(low)) => {
                bytes.extend(u8::try_from(high * 16 + low));
                rest = escaped;
            }
            (b'+', ..) => bytes.push(b' '),
            _ => bytes.push(byte),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn routes() {
        for (path, route) in [
            ("/containers/create", Route::Create),
            ("/v1.41/containers/create", Route::Create),
            ("/containers/abc/start", Route::Start("abc")),
            ("/v1.12/containers/a.b/restart", Route::Start("a.b")),
            ("/v1.41/containers/abc/json", Route::Inspect(Within::Whole)),
            ("/containers/abc/exec", Route::ExecCreate("abc")),
            ("/v1.41/exec/abc/json", Route::Inspect(Within::Container)),
            ("/exec/abc/start", Route::Other),
            ("/containers/json", Route::Other),
            ("/containers/abc/start/x", Route::Other),
            ("/v1.41/v1.41/containers/create", Route::Other),
            ("/x1.41/containers/create", Route::Other),
            ("/v/containers/create", Route::Other),
            ("/containers/create/", Route::Other),
            ("//containers/create", Route::Other),
            ("/", Route::Other),
            ("*", Route::Other),
        ] {
            assert_eq!(Route::of(path), route, "{path}");
        }
    }

    #[test]
    fn parameters() {
        for (query, value) in [
            ("name=foo", Some("foo")),
            ("x=1&name=f%2Do+o%c3%a4&name=z", Some("f-o o\u{e4}")),
            ("name", Some("")),
            ("name=%", Some("%")),
            ("name=%4", Some("%4")),
            ("name=%zz1", Some("%zz1")),
            ("names=x", None),
            ("", None),
        ] {
            assert_eq!(parameter(query, "name").as_deref(), value, "{query}");
        }
    }
}
