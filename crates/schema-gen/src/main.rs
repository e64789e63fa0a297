//! `schema-gen table` writes the table; `schema-gen go-types KUBECTL` renews the reflection facts it starts from.

use anyhow::{Context, Result, bail};
use std::path::Path;

fn main() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    match args.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        ["go-types", kubectl] => {
            let binary = std::fs::read(kubectl).with_context(|| format!("read {kubectl}"))?;
            let text = schema_gen::elf::extract(&binary)?;
            std::fs::write(here.join("data/go-types.txt"), text).context("write data/go-types.txt")
        }
        ["table"] => {
            let out = schema_gen::emit::generate()?;
            let data = here.join("../schema/data");
            std::fs::create_dir_all(&data).context("create the data directory")?;
            std::fs::write(data.join("table.txt"), out.table).context("write table.txt")?;
            std::fs::write(data.join("descriptions.bin"), schema_gen::emit::deflate(&out.descriptions)?)
                .context("write descriptions.bin")
        }
        _ => bail!("usage: schema-gen table | schema-gen go-types KUBECTL"),
    }
}
