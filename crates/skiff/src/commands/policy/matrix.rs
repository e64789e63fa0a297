//! `skiff policy matrix`: who may talk to whom.

use clap::Args;
use netpol::matrix::{Cell, Row, matrix};

use super::{BOLD, DIM, GREEN, RED, YELLOW, fetch, port};
use crate::commands::api::{said, with_client};
use crate::output::Print;

/// Options of `policy matrix`.
#[derive(Debug, Args)]
pub struct Options {
    /// The namespace whose Pods are shown.
    #[arg(short, long, default_value = "default")]
    namespace: String,
    /// Show the Pods of all namespaces.
    #[arg(short = 'A', long, conflicts_with = "namespace")]
    all_namespaces: bool,
    /// Ask about this port at each destination: 80, 53/udp, 9/sctp.
    #[arg(long, value_name = "N[/PROTOCOL]")]
    port: Option<String>,
    #[command(flatten)]
    print: Print,
}

/// Prints the table.
pub fn run(profile: &str, options: &Options) -> anyhow::Result<()> {
    let asked = options.port.as_deref().map(port).transpose()?;
    let world = with_client(profile, async |client| {
        fetch::world(&client).await.map_err(|error| said(profile, error))
    })?;
    let is_shown = |key: &client::ObjectKey| options.all_namespaces || key.namespace == options.namespace;
    let rows = matrix(&world, is_shown, asked);
    options.print.print(&rows, |rows| text(rows))
}

/// What a cell says, and how it is coloured.
fn shown(cell: &Cell) -> (String, anstyle::Style) {
    match (cell.open.is_empty(), cell.closed.is_empty()) {
        (_, true) => ("✔".to_owned(), GREEN),
        (true, false) => ("✘".to_owned(), RED),
        (false, false) => (cell.open.join(","), YELLOW),
    }
}

fn text(rows: &[Row]) -> String {
    if rows.len() < 2 {
        return "There are no Pods with an address here; another namespace: -n NAME, all: -A\n".to_owned();
    }
    let number = rows.len().to_string().len();
    let name = rows.iter().map(|row| row.from.len()).max().unwrap_or(0);
    let cells: Vec<Vec<(String, anstyle::Style)>> = rows
        .iter()
        .enumerate()
        .map(|(at, row)| {
            let mut cells: Vec<_> = row.cells.iter().map(shown).collect();
            cells.insert(at, ("·".to_owned(), DIM));
            cells
        })
        .collect();
    let width = |column: usize| {
        let widest =
            cells.iter().filter_map(|row| row.get(column)).map(|(text, _)| text.chars().count()).max();
        widest.unwrap_or(0).max(number)
    };
    let widths: Vec<usize> = (0..rows.len()).map(width).collect();
    let pad = |text: &str, width: usize| " ".repeat(width.saturating_sub(text.chars().count()));
    let mut out = format!("{BOLD}{:number$}  {:name$}{BOLD:#}", "", "FROM \\ TO");
    for (at, width) in widths.iter().enumerate() {
        let heading = (at + 1).to_string();
        out += &format!("  {}{BOLD}{heading}{BOLD:#}", pad(&heading, *width));
    }
    out.push('\n');
    for (at, row) in rows.iter().enumerate() {
        out += &format!("{BOLD}{:>number$}{BOLD:#}  {:name$}", at + 1, row.from);
        for ((text, style), width) in cells[at].iter().zip(&widths) {
            out += &format!("  {}{style}{text}{style:#}", pad(text, *width));
        }
        out.push('\n');
    }
    out + &format!("{DIM}✔ all ports asked about   ✘ none   80 only these{DIM:#}\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_lines_up() {
        let cell = |to: &str, open: &[&str], closed: &[&str]| Cell {
            to: to.to_owned(),
            open: open.iter().map(|p| (*p).to_owned()).collect(),
            closed: closed.iter().map(|p| (*p).to_owned()).collect(),
        };
        let rows = [
            Row {
                from: "d/a".into(),
                cells: vec![cell("d/bb", &["80"], &["53/udp"]), cell("outside", &["80"], &[])],
            },
            Row {
                from: "d/bb".into(),
                cells: vec![cell("d/a", &[], &["80"]), cell("outside", &["80"], &[])],
            },
            Row {
                from: "outside".into(),
                cells: vec![cell("d/a", &["80"], &[]), cell("d/bb", &["80"], &[])],
            },
        ];
        let plain = anstream::adapter::strip_str(&text(&rows)).to_string();
        let wanted = "   FROM \\ TO  1   2  3
1  d/a      ·  80  ✔
2  d/bb     ✘   ·  ✔
3  outside  ✔   ✔  ·
✔ all ports asked about   ✘ none   80 only these
";
        assert_eq!(plain, wanted);
        assert!(text(&rows[..1]).starts_with("There are no Pods"));
    }
}
