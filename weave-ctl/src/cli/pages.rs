//! `weave completion`, and the manual pages that an installation makes.

use std::path::{Path, PathBuf};
use std::{fs, io};

use clap::CommandFactory as _;

use super::{Command, Failure, Outcome, out, query};

/// The names under which the command is called.
const NAMES: [&str; 2] = ["weave", "weave-ctl"];

/// Print a script with which a shell completes commands and options
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:\n  source <(weave completion bash)\n  \
    weave completion zsh > /usr/local/share/zsh/site-functions/_weave\n  \
    weave completion fish > ~/.config/fish/completions/weave.fish")]
pub(crate) struct CompletionArgs {
    /// Which shell
    shell: Shell,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Shell {
    Bash,
    Zsh,
    Fish,
}

/// Write the manual pages into a folder
#[derive(Debug, clap::Args)]
#[command(hide = true, after_help = "Example:\n  weave man /usr/local/share/man/man1")]
pub(crate) struct ManArgs {
    /// The folder, which must be there
    folder: PathBuf,
}

pub(super) fn completion(args: &CompletionArgs) -> Outcome {
    out(&script(args.shell));
    Ok(())
}

fn script(shell: Shell) -> String {
    let generated = |name: &str| {
        let (mut command, mut text) = (complete(), Vec::new());
        match shell {
            Shell::Bash => clap_complete::generate(clap_complete::Shell::Bash, &mut command, name, &mut text),
            Shell::Zsh => clap_complete::generate(clap_complete::Shell::Zsh, &mut command, name, &mut text),
            Shell::Fish => clap_complete::generate(clap_complete::Shell::Fish, &mut command, name, &mut text),
        }
        String::from_utf8_lossy(&text).into_owned()
    };
    let [short, long] = NAMES;
    match shell {
        // One function serves both names: zsh reads them from the first line.
        Shell::Zsh => generated(short).replacen("#compdef weave", &format!("#compdef {short} {long}"), 1),
        Shell::Bash => NAMES.map(generated).concat(),
        // Its generator leaves out what stands alone.
        Shell::Fish => NAMES
            .map(|name| {
                let (function, pages) = (
                    name.replace('-', "_"),
                    query::pages().collect::<Vec<_>>().join(" "),
                );
                let on = format!("__fish_{function}_using_subcommand status");
                format!(
                    "{}complete -c {name} -n \"{on}\" -f -a \"{pages}\"\n",
                    generated(name)
                )
            })
            .concat(),
    }
}

/// The command with what only completion needs: the pages by name, where the daemon has the last word on them.
fn complete() -> clap::Command {
    let pages = clap::builder::PossibleValuesParser::new(query::pages());
    Command::command().mut_subcommand("status", |status| {
        status.mut_arg("page", |page| page.value_parser(pages))
    })
}

pub(super) fn man(args: &ManArgs) -> Outcome {
    let written = clap_mangen::generate_to(Command::command(), &args.folder);
    written.and_then(|()| examples(&args.folder)).map_err(|error| {
        let folder = args.folder.display();
        Failure::new(1, format!("cannot write manual pages into {folder}: {error}"))
    })
}

/// Examples under a heading of that name, which the generator does not know, and as they are.
fn examples(folder: &Path) -> io::Result<()> {
    let command = Command::command();
    for command in command.get_subcommands().filter(|c| !c.is_hide_set()) {
        let page = folder.join(format!("weave-{}.1", command.get_name()));
        let text = fs::read_to_string(&page)?;
        let mut text = text.replacen(".SH EXTRA\n", ".SH NOTES\n", 1);
        for title in ["Examples:\n", "Example:\n"] {
            text = text.replacen(&format!("\n{title}"), "\n.SH EXAMPLES\n.nf\n", 1);
        }
        fs::write(&page, text.replacen(".SH NOTES\n.SH EXAMPLES", ".SH EXAMPLES", 1))?;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_every_command() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let script = script(shell);
            for command in Command::command().get_subcommands() {
                let shown = script.contains(command.get_name());
                assert!(
                    shown || command.is_hide_set(),
                    "{shell:?}: {}",
                    command.get_name()
                );
            }
            assert!(script.contains("weave-ctl"), "{shell:?}");
            assert!(query::pages().all(|page| script.contains(page)), "{shell:?}");
        }
        assert!(script(Shell::Zsh).starts_with("#compdef weave weave-ctl\n"));
    }

    #[test]
    fn every_command_has_a_page() {
        let folder = tempfile::tempdir().unwrap();
        let args = ManArgs {
            folder: folder.path().to_owned(),
        };
        man(&args).unwrap();
        let read = |name: &str| fs::read_to_string(folder.path().join(name)).unwrap();
        assert!(read("weave.1").contains("weave\\-status(1)"));
        for command in Command::command().get_subcommands().filter(|c| !c.is_hide_set()) {
            let page = read(&format!("weave-{}.1", command.get_name()));
            assert!(page.contains("\n.SH EXAMPLES\n.nf\n  "), "{}", command.get_name());
        }
        let nowhere = ManArgs {
            folder: folder.path().join("none"),
        };
        assert_eq!(man(&nowhere).unwrap_err().code, 1);
    }
}
