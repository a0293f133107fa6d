//! `sunder-certificate-pdf DIR --key KEY`: writes `DIR/certificate.pdf`.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Parser;
use sunder_certificate_pdf::{FILES, render};

/// Sets the page of a certificate of erasure: PDF/A-3 with its files attached. A certificate that is not valid gets none.
#[derive(Parser)]
#[command(version)]
struct Args {
    /// The folder that `sunder certificate CASE --out DIR` wrote.
    folder: PathBuf,
    /// The verifier key, or a file that holds it.
    #[arg(long)]
    key: String,
}

fn main() -> ExitCode {
    let args = Args::parse();
    match run(&args) {
        Ok(path) => {
            println!("{}", path.display());
            ExitCode::SUCCESS
        }
        Err(why) => {
            eprintln!("sunder-certificate-pdf: {why}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &Args) -> Result<PathBuf, String> {
    let key = if PathBuf::from(&args.key).is_file() {
        std::fs::read_to_string(&args.key).map_err(|error| format!("{} cannot be read: {}", args.key, error.kind()))?
    } else {
        args.key.clone()
    };
    let mut files = BTreeMap::new();
    for (name, ..) in FILES {
        match std::fs::read(args.folder.join(name)) {
            Ok(bytes) => drop(files.insert(name.to_owned(), bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(format!("{name} cannot be read: {}", error.kind())),
        }
    }
    let pdf = render(&files, &key).map_err(|error| error.to_string())?;
    let path = args.folder.join("certificate.pdf");
    std::fs::write(&path, pdf).map_err(|error| format!("{} cannot be written: {}", path.display(), error.kind()))?;
    Ok(path)
}
