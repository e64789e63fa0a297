//! The Corefile as text: server blocks, directives and their arguments, each with its line.
//!
//! The grammar is the one of CoreDNS's manual (<https://coredns.io/manual/configuration/>): words, double quotes, `#`
//! comments, and blocks that open at the end of a line. Snippets, `import` and environment variables are refused by
//! name: a Pod of ours has neither further files nor variables to read.

/// What is wrong, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("Corefile:{line}: {what}")]
pub struct Error {
    /// Line, from 1.
    pub line: usize,
    /// What is wrong there and what would be right.
    pub what: String,
}

impl Error {
    pub(crate) fn new(line: usize, what: impl Into<String>) -> Self {
        Self { line, what: what.into() }
    }
}

/// The words of one line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Line {
    /// Its number, from 1.
    pub number: usize,
    /// At least one.
    pub words: Vec<String>,
}

/// A directive (a plugin, in CoreDNS's words) of a server block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Directive {
    /// Name and arguments.
    pub head: Line,
    /// The lines of its own block.
    pub body: Vec<Line>,
}

/// One server block.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Block {
    /// The zones that it serves, as written, with ports.
    pub keys: Line,
    /// What it does, in the order of the file.
    pub directives: Vec<Directive>,
}

/// Reads a Corefile.
///
/// # Errors
/// Names the first line that does not belong there.
pub fn parse(text: &str) -> Result<Vec<Block>, Error> {
    let mut lines = lines(text)?.into_iter();
    let mut blocks = Vec::new();
    while let Some(mut keys) = lines.next() {
        while keys.words.last().is_some_and(|word| word.ends_with(',')) {
            let more = lines.next().ok_or_else(|| Error::new(keys.number, "no zone follows the comma"))?;
            keys.words.extend(more.words);
        }
        if !open(&mut keys)? {
            return Err(Error::new(keys.number, "expected zones and `{` at the end of the line"));
        }
        if keys.words.is_empty() {
            return Err(Error::new(keys.number, "a server block needs a zone, as in `.:53 {`"));
        }
        let directives = directives(keys.number, &mut lines)?;
        blocks.push(Block { keys, directives });
    }
    Ok(blocks)
}

fn directives(opened: usize, lines: &mut impl Iterator<Item = Line>) -> Result<Vec<Directive>, Error> {
    let unclosed = |at: usize| Error::new(at, "the block that opens here has no `}`");
    let mut all = Vec::new();
    loop {
        let mut head = lines.next().ok_or_else(|| unclosed(opened))?;
        if close(&head)? {
            return Ok(all);
        }
        let mut body = Vec::new();
        if open(&mut head)? {
            if head.words.is_empty() {
                return Err(Error::new(head.number, "`{` without a directive"));
            }
            loop {
                let mut line = lines.next().ok_or_else(|| unclosed(head.number))?;
                if close(&line)? {
                    break;
                }
                if open(&mut line)? {
                    return Err(Error::new(line.number, "a block within the block of a directive"));
                }
                body.push(line);
            }
        }
        all.push(Directive { head, body });
    }
}

/// Takes the `{` off the end of a line that opens a block.
fn open(line: &mut Line) -> Result<bool, Error> {
    let opens = line.words.last().is_some_and(|word| word == "{");
    if opens {
        line.words.pop();
    }
    match line.words.iter().find(|word| *word == "{" || *word == "}") {
        Some(brace) => Err(Error::new(line.number, format!("`{brace}` must be the last word of its line"))),
        None => Ok(opens),
    }
}

fn close(line: &Line) -> Result<bool, Error> {
    match line.words.first().map(String::as_str) {
        Some("}") if line.words.len() == 1 => Ok(true),
        Some("}") => Err(Error::new(line.number, "`}` must stand alone on its line")),
        _ => Ok(false),
    }
}

/// The lines that say something, without comments.
fn lines(text: &str) -> Result<Vec<Line>, Error> {
    let mut all: Vec<Line> = Vec::new();
    let mut chars = text.chars().peekable();
    let (mut number, mut fresh) = (1, true);
    while let Some(c) = chars.next() {
        match c {
            '\n' => (number, fresh) = (number + 1, true),
            c if c.is_whitespace() => {}
            '#' => while chars.next_if(|c| *c != '\n').is_some() {},
            first => {
                let at = number;
                let word =
                    if first == '"' { quoted(&mut chars, &mut number)? } else { bare(first, &mut chars) };
                if first != '"' && (word.starts_with("{$") || word.starts_with("{%")) {
                    return Err(Error::new(at, format!("{word}: environment variables are not read")));
                }
                match all.last_mut().filter(|_| !fresh) {
                    Some(line) => line.words.push(word),
                    None => all.push(Line { number: at, words: vec![word] }),
                }
                fresh = false;
            }
        }
    }
    Ok(all)
}

type Chars<'a> = std::iter::Peekable<std::str::Chars<'a>>;

fn bare(first: char, chars: &mut Chars<'_>) -> String {
    let mut word = String::from(first);
    while let Some(c) = chars.next_if(|c| !c.is_whitespace()) {
        word.push(c);
    }
    word
}

fn quoted(chars: &mut Chars<'_>, number: &mut usize) -> Result<String, Error> {
    let at = *number;
    let mut word = String::new();
    while let Some(c) = chars.next() {
        match c {
            '"' => return Ok(word),
            '\\' if chars.peek() == Some(&'"') => word.extend(chars.next()),
            c => {
                *number += usize::from(c == '\n');
                word.push(c);
            }
        }
    }
    Err(Error::new(at, "the quote that opens here is not closed"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::expect_used)]
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn blocks_directives_and_lines_are_told_apart() {
        let text = "# head\n.:53, example.org {\n  errors # all\n  forward . \"10.0.0.1\" {\n    except a.b\n  }\n\n}\n\nx {\n}\n";
        let blocks = parse(text).unwrap();
        assert_eq!(blocks.len(), 2);
        assert_eq!(blocks[0].keys.words, [".:53,", "example.org"]);
        assert_eq!(blocks[0].directives[0].head, Line { number: 3, words: vec!["errors".into()] });
        let forward = &blocks[0].directives[1];
        assert_eq!(forward.head.words, ["forward", ".", "10.0.0.1"]);
        assert_eq!(forward.body, [Line { number: 5, words: vec!["except".into(), "a.b".into()] }]);
        assert_eq!(blocks[1].keys.number, 10);
        assert_eq!(parse("# nothing\n").unwrap(), []);
    }

    #[test]
    fn what_is_wrong_is_said_with_its_line() {
        for (text, line, part) in [
            (".:53 {\n errors\n", 1, "no `}`"),
            (".:53 {\n forward . 1.1.1.1 {\n\n", 2, "no `}`"),
            ("errors\n", 1, "`{` at the end"),
            ("\n{\n}\n", 2, "needs a zone"),
            (".:53 {\n a {\n b {\n }\n }\n}\n", 3, "a block within"),
            (".:53 {\n } errors\n", 2, "alone"),
            (".:53 {\n errors }\n", 2, "last word"),
            (".:53 {\n a \"b\n", 2, "not closed"),
            (".:53 {\n a {$HOME}\n}", 2, "environment"),
            ("a,\n", 1, "comma"),
        ] {
            let error = parse(text).unwrap_err();
            assert_eq!(error.line, line, "{text:?}: {error}");
            assert!(error.what.contains(part), "{text:?}: {error}");
        }
    }

    fn written(blocks: &[Block]) -> String {
        let words = |line: &Line| {
            line.words.iter().map(|w| format!("\"{}\"", w.replace('"', "\\\""))).collect::<Vec<_>>().join(" ")
        };
        let directive = |d: &Directive| {
            let body: Vec<String> = d.body.iter().map(|line| format!("{}\n", words(line))).collect();
            format!("{} {{\n{}}}\n", words(&d.head), body.concat())
        };
        let block = |b: &Block| {
            format!("{} {{\n{}}}\n", words(&b.keys), b.directives.iter().map(directive).collect::<String>())
        };
        blocks.iter().map(block).collect()
    }

    /// The same words on the lines in which [`written`] puts them.
    fn renumbered(mut blocks: Vec<Block>) -> Vec<Block> {
        let mut number = 1;
        let mut next = |line: &mut Line| {
            line.number = number;
            number += 1 + line.words.iter().flat_map(|word| word.chars()).filter(|c| *c == '\n').count();
        };
        for block in &mut blocks {
            next(&mut block.keys);
            for directive in &mut block.directives {
                next(&mut directive.head);
                directive.body.iter_mut().for_each(&mut next);
                next(&mut Line { number: 0, words: Vec::new() });
            }
            next(&mut Line { number: 0, words: Vec::new() });
        }
        blocks
    }

    proptest! {
        #[test]
        fn no_text_makes_it_panic(text in "[a-z.:{}\"\\\\#$, \n]{0,80}") {
            if let Err(error) = parse(&text) {
                prop_assert!(error.line >= 1 && error.line <= text.lines().count().max(1) + 1);
            }
        }

        /// What was read and written out again says the same.
        #[test]
        fn reading_what_was_written_gives_the_same(
            text in "([a-z]{1,3}( [a-z#]{1,3}){0,2} \\{\n( [a-z\"]{1,3}( [a-z.]{1,3}){0,2}\n){0,3}\\}\n){0,3}"
        ) {
            if let Ok(blocks) = parse(&text) {
                let again = parse(&written(&blocks)).unwrap();
                prop_assert_eq!(again, renumbered(blocks));
            }
        }
    }
}
