//! Reads the file, lays the environment over it, and says where a mistake is.

use std::path::{Path, PathBuf};

use super::Config;

/// The commented example that `sunder config example` prints; a test loads it.
pub const EXAMPLE: &str = include_str!("example.toml");

/// A config that cannot be used. Names file, line and key; never quotes a value.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The file cannot be read.
    #[error("config file {} cannot be read: {kind}; name another with --config FILE, or start from `sunder config example`", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The operating system's reason.
        kind: std::io::ErrorKind,
    },
    /// A line is wrong.
    #[error("{}:{line}: {message}", path.display())]
    Line {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// What is wrong, without the value.
        message: String,
    },
    /// An environment variable is wrong.
    #[error("environment variable {name}: {message}")]
    Env {
        /// The variable.
        name: String,
        /// What is wrong, without the value.
        message: String,
    },
    /// The values do not go together; one line each.
    #[error("the configuration cannot be used:\n{}", .0.iter().map(|p| format!("  - {p}")).collect::<Vec<_>>().join("\n"))]
    Rules(Vec<String>),
}

/// Loads and checks the config at `path` with the environment's overrides.
///
/// # Errors
/// [`ConfigError`] with the place and the fix.
#[expect(clippy::disallowed_methods, reason = "the config is the one reader of the environment")]
pub fn load(path: &Path) -> Result<Config, ConfigError> {
    let text = std::fs::read_to_string(path).map_err(|e| ConfigError::Read { path: path.to_owned(), kind: e.kind() })?;
    let overrides = std::env::vars_os().filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    parse(path, &text, overrides)
}

/// Parses `text`, lays `overrides` (`SUNDER_SECTION__KEY` = value) over it and checks the result.
///
/// # Errors
/// [`ConfigError`] with the place and the fix.
pub fn parse(path: &Path, text: &str, overrides: impl Iterator<Item = (String, String)>) -> Result<Config, ConfigError> {
    let mut config: Config = toml::from_str(text).map_err(|error| ConfigError::Line {
        path: path.to_owned(),
        line: line_of(text, error.span()),
        message: explain(error.message(), text, error.span()),
    })?;
    let mut overrides: Vec<_> =
        overrides.filter(|(name, _)| name.starts_with("SUNDER_") && (name.contains("__") || name == "SUNDER_ENVIRONMENT")).collect();
    overrides.sort();
    if !overrides.is_empty() {
        // The file alone has been read without error, so a failure from here on is the variable's.
        let mut table: toml::Table =
            toml::from_str(text).map_err(|e| ConfigError::Line { path: path.to_owned(), line: 0, message: e.message().to_owned() })?;
        for (name, value) in overrides {
            let bad = |message: String| ConfigError::Env { name: name.clone(), message };
            let keys: Vec<String> = name.trim_start_matches("SUNDER_").split("__").map(str::to_lowercase).collect();
            set(&mut table, &keys, read_value(&value)).map_err(bad)?;
            config = table.clone().try_into().map_err(|e: toml::de::Error| bad(explain(e.message(), "", None)))?;
        }
    }
    let problems = super::check(&config);
    if problems.is_empty() { Ok(config) } else { Err(ConfigError::Rules(problems)) }
}

/// A variable's text as TOML if it is a value of its own (`12`, `true`, `["a"]`, `{ env = "X" }`), else as a string.
fn read_value(text: &str) -> toml::Value {
    let parsed = toml::from_str::<toml::Table>(&format!("v = {text}")).ok().and_then(|mut t| t.remove("v"));
    parsed.unwrap_or_else(|| toml::Value::String(text.to_owned()))
}

fn set(table: &mut toml::Table, keys: &[String], value: toml::Value) -> Result<(), String> {
    match keys {
        [] => Err("names no key".to_owned()),
        [last] => {
            table.insert(last.clone(), value);
            Ok(())
        }
        [first, rest @ ..] => match table.entry(first.clone()).or_insert_with(|| toml::Value::Table(toml::Table::new())) {
            toml::Value::Table(inner) => set(inner, rest, value),
            _ => Err(format!("`{first}` is not a section")),
        },
    }
}

fn line_of(text: &str, span: Option<std::ops::Range<usize>>) -> usize {
    let end = span.map_or(0, |s| s.start).min(text.len());
    text.as_bytes().iter().take(end).filter(|b| **b == b'\n').count() + 1
}

/// Rewrites the parser's message: nearest known key for unknown ones, and no quoted values.
fn explain(message: &str, text: &str, span: Option<std::ops::Range<usize>>) -> String {
    let quoted: Vec<&str> = message.split('`').skip(1).step_by(2).collect();
    if let (Some(rest), Some((unknown, known))) = (message.strip_prefix("unknown field"), quoted.split_first()) {
        let nearest = known.iter().min_by_key(|k| strsim::damerau_levenshtein(k, unknown));
        return match nearest {
            Some(nearest) if !rest.is_empty() => format!("unknown key `{unknown}`; the nearest known key is `{nearest}`"),
            _ => format!("unknown key `{unknown}`"),
        };
    }
    if let Some(missing) = message.strip_prefix("missing field ") {
        return format!("key {missing} is missing");
    }
    let key = span
        .and_then(|s| text.get(..s.start))
        .and_then(|before| before.lines().last())
        .and_then(|line| line.split('=').next())
        .map(str::trim)
        .filter(|k| !k.is_empty());
    // "invalid type: string "...", expected u16" quotes the value: keep what was expected only.
    let plain = if message.starts_with("invalid ") || message.starts_with("unknown variant") {
        let expected = message.split_once("expected").map_or("another value", |(_, e)| e.trim());
        format!("not a valid value, expected {expected}")
    } else {
        message.lines().next().unwrap_or_default().to_owned()
    };
    key.map_or_else(|| plain.clone(), |key| format!("key `{key}`: {plain}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse_text(text: &str) -> Result<Config, ConfigError> {
        parse(Path::new("sunder.toml"), text, std::iter::empty())
    }

    #[test]
    fn the_example_loads() {
        parse_text(EXAMPLE).unwrap();
    }

    #[test]
    fn an_unknown_key_names_line_key_and_nearest() {
        let text = EXAMPLE.replace("partitions = 12", "partitons = 12");
        let error = parse_text(&text).unwrap_err().to_string();
        let line = text.lines().position(|l| l.starts_with("partitons")).unwrap() + 1;
        assert!(error.contains(&format!("sunder.toml:{line}:")), "{error}");
        assert!(error.contains("`partitons`") && error.contains("`partitions`"), "{error}");
    }

    #[test]
    fn a_literal_secret_is_refused_without_being_quoted() {
        let text = EXAMPLE.replace("client_secret = { file = \"/etc/sunder/lwa-secret\" }", "client_secret = \"amzn1-very-secret\"");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("must be a reference") && error.contains("client_secret"), "{error}");
        assert!(!error.contains("very-secret"), "{error}");
    }

    #[test]
    fn a_wrong_type_does_not_quote_the_value() {
        let text = EXAMPLE.replace("partitions = 12", "partitions = \"Jane Doe\"");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("`partitions`") && !error.contains("Jane"), "{error}");
    }

    #[test]
    fn the_environment_overrides_and_its_mistakes_are_named() {
        let env = |name: &str, value: &str| [(name.to_owned(), value.to_owned())].into_iter();
        let config = parse(Path::new("c"), EXAMPLE, env("SUNDER_KAFKA__PREFIX", "acme")).unwrap();
        assert_eq!(config.kafka.prefix, "acme");
        let error = parse(Path::new("c"), EXAMPLE, env("SUNDER_KAFKA__PREFX", "acme")).unwrap_err().to_string();
        assert!(error.contains("SUNDER_KAFKA__PREFX") && error.contains("`prefix`"), "{error}");
    }

    #[test]
    fn production_refuses_what_only_a_test_may_do() {
        for (from, to, word) in [
            ("lwa_endpoint = \"https://", "lwa_endpoint = \"http://", "HTTP"),
            ("profile = \"production\"", "profile = \"test\"", "profile"),
            ("offset = \"0d\"", "offset = \"31d\"", "offset"),
            ("rate_scale = 1.0", "rate_scale = 10.0", "rate_scale"),
            ("bootstrap = \"kafka-1:9092\"", "bootstrap = \"embedded\"", "embedded"),
            ("file_root_reason = \"one machine, disk encrypted\"", "", "file_root_reason"),
            ("lease = \"60s\"", "lease = \"61s\"", "keys.lease"),
        ] {
            assert!(EXAMPLE.contains(from), "{from}");
            let error = parse_text(&EXAMPLE.replacen(from, to, 1)).unwrap_err().to_string();
            assert!(error.contains(word), "{to}: {error}");
        }
    }

    #[test]
    fn a_password_inside_a_url_is_refused_and_not_shown() {
        let text = EXAMPLE.replace("postgres://user@host/sunder_keys", "postgres://user:hunter2@host/sunder_keys");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("keys.database") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn a_password_among_a_urls_options_is_refused_and_not_shown() {
        let text = EXAMPLE.replace("postgres://user@host/sunder_vault", "postgres://user@host/sunder_vault?password=hunter2");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("vault.url") && !error.contains("hunter2"), "{error}");
    }

    #[test]
    fn two_stores_never_share_a_database() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("one.db");
        let (plain, dotted) = (format!("sqlite://{}", file.display()), format!("sqlite://{}/./one.db?mode=rwc", folder.path().display()));
        for (keys, vault, warehouse, named) in [
            (plain.as_str(), dotted.as_str(), "postgres://user@host/w", "keys.database and vault.url"),
            ("postgres://user@host/k", plain.as_str(), plain.as_str(), "vault.url and warehouse.url"),
            ("postgres://user@host/w", plain.as_str(), "postgresql://user@host/w", "keys.database and warehouse.url"),
        ] {
            let text = EXAMPLE
                .replace("postgres://user@host/sunder_keys", keys)
                .replace("postgres://user@host/sunder_vault", vault)
                .replace("postgres://user@host/sunder_warehouse", warehouse);
            let error = parse_text(&text).unwrap_err().to_string();
            assert!(error.contains(named), "{error}");
        }
    }

    #[test]
    fn a_wanted_group_without_a_purpose_is_an_error() {
        let text = EXAMPLE
            .replace("personal = [\"recipient_address\", \"buyer_name\"]", "personal = [\"recipient_address\", \"buyer_name\", \"gift\"]");
        let error = parse_text(&text).unwrap_err().to_string();
        assert!(error.contains("gift") && error.contains("purpose"), "{error}");
    }
}
