//! How results are printed: for people, or as JSON or YAML for machines.

use clap::{Args, ValueEnum};

/// The flag `-o` of every command that prints a result.
#[derive(Debug, Clone, Copy, Args)]
pub struct Print {
    /// How to print.
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// How a result is printed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people.
    #[default]
    #[value(alias = "table")]
    Text,
    /// For machines.
    Json,
    /// For machines.
    Yaml,
}

impl Output {
    /// Prints a value in this form; `text` makes the human one.
    pub fn print<T: serde::Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        match self {
            Self::Text => anstream::print!("{}", text(value)),
            Self::Json => println!("{}", serde_json::to_string_pretty(value)?),
            Self::Yaml => print!("{}", serde_saphyr::to_string(value)?),
        }
        Ok(())
    }
}

impl Print {
    /// [`Output::print`].
    pub fn print<T: serde::Serialize>(
        self,
        value: &T,
        text: impl FnOnce(&T) -> String,
    ) -> anyhow::Result<()> {
        self.output.print(value, text)
    }
}

/// An error and its causes on one line; a cause that the words before it name already is not said again.
pub fn chain(error: &anyhow::Error) -> String {
    error.chain().fold(String::new(), |said, cause| {
        let cause = cause.to_string();
        match said.as_str() {
            "" => cause,
            said if said.ends_with(&cause) => said.to_owned(),
            said => format!("{said}: {cause}"),
        }
    })
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::chain;

    #[test]
    fn a_cause_is_said_once() {
        let file = cluster::Error::File {
            operation: "open",
            path: "/x".into(),
            source: io::Error::new(io::ErrorKind::NotFound, "it is not there"),
        };
        let error = anyhow::Error::new(file).context("read the settings");
        assert_eq!(chain(&error), "read the settings: open /x: it is not there");
        assert_eq!(chain(&anyhow::anyhow!("b").context("a")), "a: b");
    }
}
