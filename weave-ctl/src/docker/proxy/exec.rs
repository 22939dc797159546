//! Rewrites what is executed in a container that waits, so that it waits as well (control.md 4.3, "exec create"). Pure.

use super::Failure;
use super::create::HELPER;
use super::object::Object;

/// The request as Docker gets it; `None`: unchanged.
pub fn rewrite(mut request: Object) -> Result<Option<Object>, Failure> {
    let mut cmd = request.one_or_more("Cmd")?;
    // Docker has its own words for no command.
    if cmd.first().is_none_or(|first| first == HELPER) {
        return Ok(None);
    }
    cmd.insert(0, HELPER.to_owned());
    request.set("Cmd", &cmd)?;
    Ok(Some(request))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn commands() {
        for (sent, expected) in [
            (
                r#"{"Tty":false,"Cmd":["ls","-l"],"X":1.0}"#,
                Some(r#"{"Tty":false,"Cmd":["/w/w","ls","-l"],"X":1.0}"#),
            ),
            (r#"{"Cmd":"ls"}"#, Some(r#"{"Cmd":["/w/w","ls"]}"#)),
            (r#"{"Cmd":["/w/w","ls"]}"#, None),
            (r#"{"Cmd":[]}"#, None),
            (r"{}", None),
        ] {
            let request = Object::parse(sent.as_bytes()).unwrap().unwrap();
            let got = rewrite(request).unwrap();
            let got = got.map(|request| serde_json::to_string(&request).unwrap());
            assert_eq!(got.as_deref(), expected, "{sent}");
        }
    }
}
