//! A store on the command line, for trying things out: `images ROOT load FILE | pull NAME | ls | rm NAME | save NAME FILE`.
#![allow(clippy::unwrap_used)]

use std::time::Instant;

use image::{RegistryConfig, Store};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let [root, command @ ..] = words.as_slice() else { return Err("usage: images ROOT COMMAND".into()) };
    let store = Store::open(root.as_ref(), RegistryConfig::default())?;
    let start = Instant::now();
    let report = |progress: image::Progress| eprintln!("{:>6} ms {progress:?}", start.elapsed().as_millis());
    match command {
        ["load", file] => {
            for image in store.load(std::path::Path::new(file), &report).await? {
                println!("{} {:?}", image.id, image.references);
            }
        }
        ["pull", name] => {
            println!("{}", store.pull(name, &[], &report).await.map_err(|error| error.rpc())?.image_id())
        }
        ["ls"] => {
            for image in store.list()? {
                println!(
                    "{} {:?} {} bytes, {} layers",
                    image.id,
                    image.references,
                    image.size,
                    image.layers.len()
                );
            }
        }
        ["rm", name] => store.remove(name)?,
        ["save", name, file] => store.save(&[name], std::io::BufWriter::new(std::fs::File::create(file)?))?,
        _ => return Err("unknown command".into()),
    }
    eprintln!("{:?}", start.elapsed());
    Ok(())
}
