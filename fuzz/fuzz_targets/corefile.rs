//! Corefiles of any text: honoured or refused with a line of the text; what was read and is written out again says the
//! same.
#![no_main]

use dns::config::Config;
use dns::corefile::{Block, Directive, Line, parse};
use dns::name::Domain;

fn written(blocks: &[Block]) -> String {
    let words = |line: &Line| {
        line.words.iter().map(|w| format!("\"{}\"", w.replace('"', "\\\""))).collect::<Vec<_>>().join(" ")
    };
    let directive = |d: &Directive| {
        let body: String = d.body.iter().map(|line| format!("{}\n", words(line))).collect();
        format!("{} {{\n{body}}}\n", words(&d.head))
    };
    let block = |b: &Block| {
        format!("{} {{\n{}}}\n", words(&b.keys), b.directives.iter().map(directive).collect::<String>())
    };
    blocks.iter().map(block).collect()
}

/// The words alone.
fn said(blocks: Vec<Block>) -> Vec<Block> {
    let mut blocks = blocks;
    for block in &mut blocks {
        block.keys.number = 0;
        for directive in &mut block.directives {
            directive.head.number = 0;
            directive.body.iter_mut().for_each(|line| line.number = 0);
        }
    }
    blocks
}

libfuzzer_sys::fuzz_target!(|text: &str| {
    let lines = text.split('\n').count();
    let domain = Domain::parse("cluster.local").unwrap();
    if let Err(error) = Config::read(text, &domain) {
        assert!((1..=lines).contains(&error.line), "{error} of {lines} lines");
    }
    let Ok(blocks) = parse(text) else { return };
    // A word that ends with a backslash cannot be quoted, and a quoted brace is one.
    let hard = |w: &String| w.ends_with('\\') || w.contains("\\\"") || w.ends_with(',');
    let all = |b: &Block| {
        let lines = b.directives.iter().flat_map(|d| std::iter::once(&d.head).chain(&d.body));
        lines.chain([&b.keys]).flat_map(|line| &line.words).any(hard)
    };
    if !blocks.iter().any(all) {
        assert_eq!(said(parse(&written(&blocks)).expect("what was read")), said(blocks));
    }
});
