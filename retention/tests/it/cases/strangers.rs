//! What a stranger finds who has the files of real certificates and the key: each byte of each file changed, and worse.

use sunder_retention::case::{self, Files, KnownLog};
use sunder_schemas::certificate::{CertificateError, Evidence, check_with};
use sunder_schemas::note::{NoteError, NoteSigner};
use sunder_schemas::tlog::{self, LogError};

use super::request;
use crate::world::{World, signer};
use sunder_retention::case::Progress;

/// A world with `count` certified cases; the files of each, written after the last.
async fn certified(count: usize) -> (World, Vec<Files>) {
    let world = World::new().await;
    let mut cases = Vec::new();
    for n in 1..=count {
        world.order(n).await;
        world.flow();
        let case = world.engine().request(&request(&[n])).await.unwrap();
        assert_eq!(world.work(&case).await, Progress::Done);
        cases.push(case);
    }
    let mut files = Vec::new();
    for case in &cases {
        files.push(world.certificate(case).await);
    }
    (world, files)
}

/// The note and what lies beside it.
fn folder(files: &Files) -> (Vec<u8>, Evidence) {
    let beside = Evidence {
        statement: Some(files.statement.clone()),
        proof: Some(files.proof.clone()),
        checkpoint: Some(files.checkpoint.clone()),
        consistency: Some(files.consistency.clone()),
        keys: files.keys.clone(),
        verifier_key: Some(format!("{}\n", files.verifier_key).into_bytes()),
        ..Evidence::default()
    };
    (files.note.clone(), beside)
}

/// One file of the folder, to change it.
type File = fn(&mut (Vec<u8>, Evidence)) -> &mut Vec<u8>;
const FILES: [(&str, File); 7] = [
    ("certificate.note", |folder| &mut folder.0),
    ("certificate.json", |folder| folder.1.statement.as_mut().unwrap()),
    ("certificate.proof", |folder| folder.1.proof.as_mut().unwrap()),
    ("certificate.checkpoint", |folder| folder.1.checkpoint.as_mut().unwrap()),
    ("certificate.consistency", |folder| folder.1.consistency.as_mut().unwrap()),
    ("certificate.keys", |folder| folder.1.keys.as_mut().unwrap()),
    ("certificate.pub", |folder| folder.1.verifier_key.as_mut().unwrap()),
];

fn is_valid(folder: &(Vec<u8>, Evidence)) -> bool {
    check_with(&folder.0, &signer().verifier_key(), &folder.1).is_ok()
}

#[tokio::test]
async fn any_changed_byte_of_any_file_of_a_certificate_is_found() {
    let (_world, files) = certified(3).await;
    let whole = folder(&files[0]);
    let checked = check_with(&whole.0, &signer().verifier_key(), &whole.1).unwrap();
    assert_eq!((checked.leaf, checked.log_size, checked.signer.as_str()), (Some(0), Some(3), "example.com/sunder"));
    for (name, file) in FILES {
        let length = file(&mut whole.clone()).len();
        let changed = |change: &dyn Fn(&mut Vec<u8>)| {
            let mut folder = whole.clone();
            change(file(&mut folder));
            is_valid(&folder)
        };
        for at in 0..length {
            assert!(!changed(&|bytes| bytes[at] ^= 1 << (at % 8)), "{name}: byte {at} flipped");
        }
        for length in [0, 1, length / 2, length - 1] {
            assert!(!changed(&|bytes| bytes.truncate(length)), "{name}: cut to {length}");
        }
        for more in [b"\n".as_slice(), b" ", b"\0", b"x", b"\r\n", &[0xff], b"\xef\xbb\xbf"] {
            assert!(!changed(&|bytes| bytes.extend_from_slice(more)), "{name}: {more:?} after it");
            assert!(!changed(&|bytes| drop(bytes.splice(0..0, more.iter().copied()))), "{name}: {more:?} before it");
        }
        assert!(!changed(&|bytes| bytes.extend(bytes.clone())), "{name}: twice");
        assert!(!changed(&|bytes| *bytes = String::from_utf8_lossy(bytes).replace('\n', "\r\n").into_bytes()), "{name}: other line ends");
        let lines = String::from_utf8(file(&mut whole.clone()).clone()).unwrap().lines().map(str::to_owned).collect::<Vec<_>>();
        for at in 1..lines.len() {
            if lines[at - 1] != lines[at] {
                let mut lines = lines.clone();
                lines.swap(at - 1, at);
                assert!(!changed(&|bytes| *bytes = format!("{}\n", lines.join("\n")).into_bytes()), "{name}: lines {at} swapped");
            }
        }
    }
}

#[tokio::test]
async fn the_statement_beside_has_one_spelling() {
    let (_world, files) = certified(1).await;
    let whole = folder(&files[0]);
    let text = String::from_utf8(files[0].statement.clone()).unwrap();
    let tree: serde_json::Value = serde_json::from_str(&text).unwrap();
    let same_meaning = [
        ("indented", serde_json::to_string_pretty(&tree).unwrap()),
        ("without its line end", text.trim_end().to_owned()),
        ("a space after a colon", text.replacen("\":", "\": ", 1)),
        ("an escaped letter", text.replacen("operator", "\\u006fperator", 1)),
        ("an escaped slash", text.replacen('/', "\\/", 1)),
        ("a key twice", text.replacen("{\"actors\"", "{\"form\":\"sunder-certificate/1\",\"actors\"", 1)),
        ("another number", text.replacen("\"count\":1", "\"count\":1.0", 1)),
    ];
    for (how, other) in same_meaning {
        assert_ne!(other, text, "{how}: the test changes something");
        let mut folder = whole.clone();
        folder.1.statement = Some(other.clone().into_bytes());
        let error = check_with(&folder.0, &signer().verifier_key(), &folder.1).unwrap_err();
        assert_eq!(error, CertificateError::OtherStatement, "{how}");
        // Signed by the right key it is no certificate either.
        if other.ends_with('\n') {
            let Ok(note) = signer().sign(other.as_bytes()) else { continue };
            let error = check_with(&note, &signer().verifier_key(), &Evidence::default()).unwrap_err();
            assert!(matches!(error, CertificateError::NotCanonical | CertificateError::NotAStatement), "{how}: {error}");
        }
    }
}

#[tokio::test]
async fn another_key_and_mixed_folders_are_told_by_code() {
    let (_world, files) = certified(2).await;
    let (mine, other) = (folder(&files[0]), folder(&files[1]));
    let key = signer().verifier_key();
    let code = |note: &[u8], key: &str, evidence: &Evidence| check_with(note, key, evidence).unwrap_err().code();
    let none = Evidence::default();
    let stranger = NoteSigner::from_seed("example.com/sunder", &[1; 32]).unwrap();
    let renamed = NoteSigner::from_seed("example.com/other", &[9; 32]).unwrap();
    assert!(check_with(&mine.0, &key, &none).is_ok(), "the note alone");
    assert_eq!(code(&mine.0, &stranger.verifier_key(), &none), "unknown_signer");
    assert_eq!(code(&mine.0, &renamed.verifier_key(), &none), "unknown_signer");
    assert_eq!(code(&mine.0, "", &none), "bad_key");
    assert_eq!(code(b"", &key, &none), "not_a_note");
    assert_eq!(code(&mine.0, &key, &Evidence { proof: other.1.proof.clone(), ..none.clone() }), "not_included");
    assert_eq!(code(&mine.0, &key, &Evidence { statement: other.1.statement.clone(), ..none.clone() }), "other_statement");
    assert_eq!(
        code(&mine.0, &key, &Evidence { verifier_key: Some(format!("{}\n", stranger.verifier_key()).into_bytes()), ..none.clone() }),
        "other_key"
    );
    assert_eq!(code(&mine.0, &key, &Evidence { keys: other.1.keys.clone(), ..none.clone() }), "other_keys");
    assert_eq!(code(&mine.0, &key, &Evidence { consistency: None, ..mine.1.clone() }), "incomplete_evidence");
    assert_eq!(code(&mine.0, &key, &Evidence { proof: None, ..mine.1.clone() }), "incomplete_evidence");
    assert_eq!(code(&mine.0, &key, &Evidence { consistency: other.1.consistency.clone(), ..mine.1.clone() }), "bad_proof");
    // The right proof under a head that somebody else signed.
    let head = tlog::open_head(&files[0].checkpoint, &key).unwrap();
    let forged = Evidence { checkpoint: Some(tlog::sign_head(&stranger, &head).unwrap()), ..mine.1.clone() };
    assert_eq!(code(&mine.0, &key, &forged), "unknown_signer");
}

#[tokio::test]
async fn a_stranger_with_an_older_head_finds_what_was_rewritten() {
    let (world, files) = certified(3).await;
    let key = signer().verifier_key();
    let first = folder(&files[0]);
    let log = case::log_files(world.ring.db(), &key).await.unwrap();
    let known = |kept: &[u8], log: Option<tlog::LogFiles>| {
        check_with(&first.0, &key, &Evidence { kept: Some(kept.to_vec()), log, ..first.1.clone() })
    };
    // The head after the first certificate stands in its proof; that after the second only the log leads to.
    let proof_head = |files: &Files| {
        let text = String::from_utf8(files.proof.clone()).unwrap();
        text.split_once("\n\n").unwrap().1.as_bytes().to_vec()
    };
    assert!(known(&proof_head(&files[0]), None).is_ok());
    assert!(known(&files[0].checkpoint, None).is_ok());
    assert_eq!(known(&proof_head(&files[1]), None).unwrap_err(), CertificateError::NeedsLog);
    for kept in [proof_head(&files[0]), proof_head(&files[1]), files[2].checkpoint.clone()] {
        assert_eq!(known(&kept, Some(log.clone())).unwrap().log_size, Some(3));
    }
    // A log of other certificates under the same key, as a rewriting signer would make it.
    let (other_world, other) = certified(4).await;
    let other_log = case::log_files(other_world.ring.db(), &key).await.unwrap();
    let rewritten: CertificateError = LogError::Inconsistent.into();
    assert_eq!(known(&proof_head(&other[1]), Some(log.clone())).unwrap_err(), rewritten);
    assert_eq!(known(&proof_head(&other[0]), None).unwrap_err(), rewritten);
    assert_eq!(known(&other[0].checkpoint, Some(log.clone())).unwrap_err(), rewritten, "the log is shorter than the head");
    assert_eq!(known(&proof_head(&files[0]), Some(other_log)).unwrap_err(), rewritten);
    // The same by the one who runs it.
    let heads = vec![tlog::open_head(&proof_head(&other[1]), &key).unwrap()];
    let fault = case::verify_log(world.ring.db(), &key, &KnownLog { heads, ..KnownLog::default() }).await.unwrap_err();
    assert_eq!(fault.code(), "log_rewritten");
    // Any byte of the log's files.
    let with = |log: tlog::LogFiles| check_with(&first.0, &key, &Evidence { log: Some(log), ..first.1.clone() }).is_ok();
    assert!(with(log.clone()));
    for at in 0..log.checkpoint.len() {
        let mut bad = log.clone();
        bad.checkpoint[at] ^= 1;
        assert!(!with(bad), "checkpoint byte {at}");
    }
    for (path, tile) in &log.tiles {
        for at in 0..tile.len() {
            let mut bad = log.clone();
            bad.tiles.get_mut(path).unwrap()[at] ^= 1 << (at % 8);
            assert!(!with(bad), "{path} byte {at}");
        }
    }
}

/// Changes that no one thought of: flips, cuts, copies of stretches, swaps, bytes put in. Nothing panics, and nothing but the files as
/// they were is valid.
#[tokio::test]
async fn ten_thousand_random_changes_are_found() {
    let seed = 0x5eed_2026_1122_u64;
    let mut state = seed;
    let mut random = move |below: usize| {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = state;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % u64::try_from(below.max(1)).unwrap()).unwrap()
    };
    let (_world, files) = certified(2).await;
    let whole = folder(&files[0]);
    for round in 0..10_000 {
        let (name, file) = FILES[random(FILES.len())];
        let mut folder = whole.clone();
        let bytes = file(&mut folder);
        for _ in 0..=random(3) {
            let (from, to) = (random(bytes.len()), random(bytes.len()));
            match random(7) {
                0 if !bytes.is_empty() => bytes[from] ^= u8::try_from(1 + random(255)).unwrap(),
                1 => bytes.truncate(from),
                2 if !bytes.is_empty() => drop(bytes.remove(from)),
                3 => bytes.insert(from, u8::try_from(random(256)).unwrap()),
                4 if !bytes.is_empty() => bytes.swap(from, to),
                5 => {
                    let stretch = bytes[from.min(to)..from.max(to)].to_vec();
                    bytes.splice(from..from, stretch);
                }
                _ => *bytes = (0..random(400)).map(|_| u8::try_from(random(256)).unwrap()).collect(),
            }
        }
        assert_eq!(is_valid(&folder), folder == whole, "seed {seed:#x}, round {round}, {name}");
        // The same bytes as key, as log and as kept head: an answer, whatever it is.
        let bytes = file(&mut folder).clone();
        let wild = Evidence { kept: Some(bytes.clone()), ..Evidence::default() };
        assert!(check_with(&whole.0, &String::from_utf8_lossy(&bytes), &wild).is_err() || name == "certificate.pub" || folder == whole);
        assert!(tlog::LogFiles { checkpoint: bytes, ..Default::default() }.check(&signer().verifier_key()).is_err());
    }
    assert_eq!(check_with(&whole.0, "", &whole.1).unwrap_err(), CertificateError::Note(NoteError::BadKey));
}

/// Other people's code, which shares nothing with ours, comes to the same answer (`scripts/judge`). Needs Go: `scripts/test` sees to it.
#[tokio::test]
async fn other_peoples_code_accepts_what_we_sign_and_nothing_else() {
    let Some(judge) = judge() else { return };
    let (world, files) = certified(5).await;
    let log = case::log_files(world.ring.db(), &signer().verifier_key()).await.unwrap();
    let dir = tempfile::tempdir().unwrap();
    let log_folder = dir.path().join("log");
    for (name, bytes) in log.tiles.iter().map(|(name, bytes)| (name.as_str(), bytes)).chain([("checkpoint", &log.checkpoint)]) {
        write(&log_folder.join(name), bytes);
    }
    let run = |folder: &std::path::Path| {
        let key = dir.path().join("key");
        write(&key, signer().verifier_key().as_bytes());
        std::process::Command::new(&judge).args([&key, folder, &log_folder]).output().unwrap()
    };
    for (n, files) in files.iter().enumerate() {
        let folder = dir.path().join(n.to_string());
        for (name, bytes) in files.named() {
            write(&folder.join(name), &bytes);
        }
        let output = run(&folder);
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(output.status.success(), "certificate {n}: {said}");
        let told = [
            "note: signed by example.com/sunder".to_owned(),
            format!("inclusion: leaf {n} of a log of {}", n + 1),
            format!("consistency: the log of {} is the beginning of the log of 5", n + 1),
            "tiles: leaf and both heads are in the log".to_owned(),
        ];
        assert_eq!(said.lines().collect::<Vec<_>>(), told);
        for (name, bytes) in files.named().into_iter().filter(|(name, _)| !matches!(*name, "certificate.pub" | "certificate.keys")) {
            for at in (0..bytes.len()).step_by(bytes.len() / 3 + 1) {
                let mut bad = bytes.clone();
                bad[at] ^= 1;
                write(&folder.join(name), &bad);
                assert_eq!(run(&folder).status.code(), Some(1), "{name} byte {at}");
            }
            write(&folder.join(name), &bytes);
        }
    }
    let tile = log_folder.join("tile/0/000.p/5");
    let mut bytes = std::fs::read(&tile).unwrap();
    bytes[33] ^= 1;
    write(&tile, &bytes);
    assert_eq!(run(&dir.path().join("1")).status.code(), Some(1), "a tile");
}

fn write(path: &std::path::Path, bytes: &[u8]) {
    std::fs::create_dir_all(path.parent().unwrap()).unwrap();
    std::fs::write(path, bytes).unwrap();
}

/// The judge as `scripts/test` built it.
#[expect(clippy::disallowed_methods, reason = "tests take their services from the environment")]
fn judge() -> Option<std::path::PathBuf> {
    std::env::var("SUNDER_TEST_JUDGE").ok().map(Into::into)
}
