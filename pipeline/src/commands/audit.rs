//! `sunder audit ...`: the audit chain and the log of certificates, against themselves and against what was published of them.

use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sunder_retention::audit::{self, VerifyError};
use sunder_retention::case::{LogFault, VerifiedLog, verify_log};
use sunder_schemas::chain::ChainHead;
use sunder_schemas::tlog;

use super::Failure;
use super::certificate_check::given;
use crate::app::{Base, connect_kafka, signer};
use crate::cli::{DONE, NOT_TRUE, VerifyArgs};
use crate::config::Config;
use crate::kafka::published::Published;
use crate::output::Output;

/// The embedded broker, as `kafka.bootstrap` names it.
const EMBEDDED: &str = "embedded";

/// Why something does not hold: a code of `docs/errors.md`, and words.
struct Fault {
    code: &'static str,
    words: String,
}

/// Checks both logs.
pub(super) async fn verify(config: Config, args: &VerifyArgs, output: Output) -> Result<u8, Failure> {
    let key = signer(&config)?.verifier_key();
    let mut kept = Kept::read(&args.checkpoint, &key)?;
    // An embedded log ends with its process: there is nothing to compare with.
    let is_mirrored = !args.database_only && config.kafka.bootstrap != EMBEDDED;
    let published = if is_mirrored {
        let kafka = connect_kafka(&config).await?;
        kafka.read_published(&key).await.map_err(|e| Failure::of("audit verify", &e))?
    } else {
        Published::default()
    };
    let seen = json!({ "audit_events": published.audit_records, "certificates": published.certificate_records });
    let base = Base::open(config, None).await?;
    match judge(&base, &key, published, &mut kept).await? {
        Ok((chain, log)) => {
            let read = if is_mirrored { seen } else { Value::Null };
            let answer = json!({
                "holds": true, "events": chain.rows, "after": chain.after, "head": chain.head, "signed_heads": chain.heads,
                "certificates": log, "published": read, "checkpoints": kept.count,
            });
            output.show(&answer, || told(&chain, &log, is_mirrored));
            Ok(DONE)
        }
        Err(fault) => {
            let answer = json!({ "holds": false, "reason": fault.code, "detail": fault.words });
            output.show(&answer, || format!("DOES NOT HOLD ({}): {}", fault.code, fault.words));
            Ok(NOT_TRUE)
        }
    }
}

fn told(chain: &audit::Verified, log: &VerifiedLog, is_mirrored: bool) -> String {
    let published = if is_mirrored { "both agree with what was published" } else { "what was published was not read" };
    format!("the chain holds: {} events\nthe certificate log holds: {} certificates\n{published}", chain.rows, log.leaves)
}

type Judged = Result<(audit::Verified, VerifiedLog), Fault>;

async fn judge(base: &Base, key: &str, mut published: Published, kept: &mut Kept) -> Result<Judged, Failure> {
    let db = base.keyring.db();
    for head in &kept.chain {
        published.audit.head(head);
    }
    published.certificates.heads.append(&mut kept.log);
    let chain = match audit::verify(db, key, &published.audit).await {
        Ok(chain) => chain,
        Err(VerifyError::Database(error)) => return Err(Failure::of("audit verify", &error)),
        Err(broken) => return Ok(Err(Fault { code: broken.code(), words: broken.to_string() })),
    };
    let log = match verify_log(db, key, &published.certificates).await {
        Ok(log) => log,
        Err(LogFault::Database(error)) => return Err(Failure::of("audit verify", &error)),
        Err(broken) => return Ok(Err(Fault { code: broken.code(), words: broken.to_string() })),
    };
    // Last, since what is wrong in the database weighs more than a stranger's record on a topic.
    if let Some(at) = published.changed.into_iter().next() {
        let broken = VerifyError::Published { at };
        return Ok(Err(Fault { code: broken.code(), words: broken.to_string() }));
    }
    Ok(Ok((chain, log)))
}

/// Signed heads that the caller kept.
#[derive(Default)]
struct Kept {
    chain: Vec<ChainHead>,
    log: Vec<tlog::Head>,
    count: usize,
}

impl Kept {
    fn read(files: &[PathBuf], key: &str) -> Result<Self, Failure> {
        let mut kept = Self { count: files.len(), ..Self::default() };
        for file in files {
            let signed = given(file)?;
            match (ChainHead::open(&signed, key), tlog::open_head(&signed, key)) {
                (Ok(head), _) => kept.chain.push(head),
                (_, Ok(head)) => kept.log.push(head),
                (Err(_), Err(error)) => {
                    return Err(Failure::Use(format!("{} is no head that this signer signed: {error}", file.display())));
                }
            }
        }
        Ok(kept)
    }
}

/// Writes the newest signed heads of both logs, for others to keep.
pub(super) async fn checkpoint(config: Config, out: &Path, output: Output) -> Result<u8, Failure> {
    let signer = signer(&config)?;
    let base = Base::open(config, None).await?;
    let db = base.keyring.db();
    let chain = audit::sign_head(db, &signer, base.clock.now()).await.map_err(|e| Failure::of("audit checkpoint", &e))?;
    let log = sunder_retention::case::log_head(db).await.map_err(|e| Failure::of("audit checkpoint", &e))?;
    let heads = [("audit.checkpoint", chain), ("certificates.checkpoint", log)];
    let failed = |path: &Path, error: &std::io::Error| Failure::Failed(format!("{} cannot be written: {}", path.display(), error.kind()));
    std::fs::create_dir_all(out).map_err(|e| failed(out, &e))?;
    let mut names = Vec::new();
    for (name, head) in heads.into_iter().filter_map(|(name, head)| Some((name, head?))) {
        let path = out.join(name);
        std::fs::write(&path, head).map_err(|e| failed(&path, &e))?;
        names.push(path.display().to_string());
    }
    output.show(&json!({ "files": names }), || if names.is_empty() { "both logs are empty".to_owned() } else { names.join("\n") });
    Ok(DONE)
}
