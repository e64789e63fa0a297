//! The reference of all commands, `docs/commands.md`, made from the command line itself.

use std::fmt::Write as _;

use clap::Command;

/// The page.
pub fn text(root: Command) -> String {
    let mut page = String::from(
        "# Commands\n\nMade from the command line itself by `make docs`; a test compares. Called as `minikube` the same.\n",
    );
    let mut root = root.term_width(100).disable_help_flag(true);
    root.build();
    add(&mut page, &mut root);
    page
}

fn add(page: &mut String, command: &mut Command) {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name()).to_owned();
    let heading = if name.split(' ').count() > 2 { "###" } else { "##" };
    let help = command.render_long_help().to_string();
    let lines: Vec<&str> = help.lines().map(str::trim_end).collect();
    // Writing to a String cannot fail.
    let _ = write!(page, "\n{heading} {name}\n\n```text\n{}\n```\n", lines.join("\n").trim_end());
    for child in command.get_subcommands_mut().filter(|child| !child.is_hide_set()) {
        add(page, child);
    }
}
