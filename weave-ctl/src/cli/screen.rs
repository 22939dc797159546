//! What is shown at a terminal: colours, and pages that are drawn again and again.

use std::io::{self, IsTerminal as _};
use std::time::Duration;

use tokio::signal::unix::{SignalKind, signal};

use super::{Failure, Outcome};

const GREEN: &str = "32";
const YELLOW: &str = "33";
const RED: &str = "31";

/// Words that stand out, and how.
const WORDS: [(&str, &str); 9] = [
    (" established ", GREEN),
    (" pending ", YELLOW),
    (" connecting ", YELLOW),
    (" retrying ", RED),
    (" failed ", RED),
    ("Status: ready", GREEN),
    ("- unreachable!", RED),
    (" conflict: ", RED),
    ("Renamed: ", YELLOW),
];

/// Where standard output goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Screen {
    /// To a person.
    pub terminal: bool,
    /// Who wants colours.
    pub colour: bool,
}

impl Screen {
    /// Standard output of this process.
    pub fn of_process() -> Self {
        let terminal = !cfg!(test) && io::stdout().is_terminal();
        let set = |name: &str| std::env::var_os(name).is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|term| term == "dumb");
        Self {
            terminal,
            colour: terminal && !set("NO_COLOR") && !dumb,
        }
    }

    /// The text with colours, if they are wanted.
    pub fn painted(self, text: String) -> String {
        if !self.colour {
            return text;
        }
        text.split_inclusive('\n').map(paint).collect()
    }
}

fn paint(line: &str) -> String {
    let mut line = line.to_owned();
    for (word, colour) in WORDS {
        if line.contains(word) {
            let bare = word.trim();
            let painted = word.replace(bare, &format!("\x1b[{colour}m{bare}\x1b[0m"));
            line = line.replacen(word, &painted, 1);
        }
    }
    if let Some((head, reason)) = line.split_once("reason=\"") {
        let (reason, end) = match reason.strip_suffix('\n') {
            Some(reason) => (reason, "\n"),
            None => (reason, ""),
        };
        line = format!("{head}\x1b[{YELLOW}mreason=\"{reason}\x1b[0m{end}");
    }
    line
}

/// Shows what `page` gives every so often, until Ctrl-C or until nobody reads it any more. A page that cannot be
/// had at first ends it; later on only its text is shown, as daemons come back.
pub async fn watch(
    screen: Screen,
    every: Duration,
    mut page: impl AsyncFnMut() -> Result<String, Failure>,
) -> Outcome {
    let interrupt = signal(SignalKind::interrupt());
    let mut interrupt = interrupt.map_err(|e| Failure::new(1, format!("cannot wait for Ctrl-C: {e}")))?;
    let mut first = true;
    loop {
        let got = tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            got = page() => got,
        };
        let text = match got {
            Ok(text) => text,
            Err(failure) if first => return Err(failure),
            Err(failure) => format!("{}\n", failure.text.trim_end()),
        };
        first = false;
        // From the top left corner; what was longer goes.
        let before = if screen.terminal { "\x1b[H\x1b[J" } else { "" };
        if super::try_out(&format!("{before}{text}")).is_err() {
            return Ok(());
        }
        tokio::select! {
            _ = interrupt.recv() => return Ok(()),
            () = tokio::time::sleep(every) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours() {
        let screen = |colour| Screen {
            terminal: true,
            colour,
        };
        let text = "-> 10.0.0.1:6783  established fastdp n(k) mtu=1416\n\
                    -> 10.0.0.2:6783  failed      no, retry: never\n\
                    -> 10.0.0.3:6783  established sleeve n(k) mtu=1400, reason=\"no established way\"\n\
                    plain\n";
        assert_eq!(screen(false).painted(text.to_owned()), text);
        let painted = screen(true).painted(text.to_owned());
        let lines: Vec<&str> = painted.lines().collect();
        assert_eq!(
            lines[0],
            "-> 10.0.0.1:6783  \x1b[32mestablished\x1b[0m fastdp n(k) mtu=1416"
        );
        assert_eq!(
            lines[1],
            "-> 10.0.0.2:6783  \x1b[31mfailed\x1b[0m      no, retry: never"
        );
        assert!(lines[2].ends_with("mtu=1400, \x1b[33mreason=\"no established way\"\x1b[0m"));
        assert_eq!(lines[3], "plain");
    }

    #[tokio::test]
    async fn a_page_that_fails_at_first_ends_the_watch_and_later_does_not() {
        let screen = Screen {
            terminal: false,
            colour: false,
        };
        let every = Duration::ZERO;
        let failure = Failure::new(1, "gone");
        let failing = watch(screen, every, async || Err(Failure::new(1, "gone"))).await;
        assert_eq!(failing, Err(failure));

        let (mut turn, seen) = (0, tokio::sync::Notify::new());
        let watching = watch(screen, every, async || {
            turn += 1;
            match turn {
                2 => Err(Failure::new(1, "away\n")),
                4 => {
                    seen.notify_one();
                    std::future::pending().await
                }
                turn => Ok(format!("page {turn}\n")),
            }
        });
        tokio::select! {
            ended = watching => panic!("{ended:?}"),
            () = seen.notified() => {}
        }
        assert_eq!(crate::cli::tests::PRINTED.take(), "page 1\naway\npage 3\n");
    }
}
