//! The command line: a contract (DESIGN section 6). Every command takes `--config` and `--json` before or after its name.

use std::path::PathBuf;

use clap::{Args, Parser, Subcommand, ValueEnum};
use sunder_schemas::time::Period;

/// Exit code: done.
pub const DONE: u8 = 0;
/// Exit code: failed.
pub const FAILED: u8 = 1;
/// Exit code: wrong use or config (also clap's).
pub const WRONG_USE: u8 = 2;
/// Exit code: a check, verification or deadline does not hold (yet).
pub const NOT_TRUE: u8 = 3;

/// Sunder: an event-sourced pipeline for Amazon Selling Partner API data that seals personal data before it is written anywhere,
/// and erases it with proof.
#[derive(Debug, Parser)]
#[command(
    name = "sunder",
    version,
    about,
    max_term_width = 110,
    arg_required_else_help = true,
    after_help = "\
Exit codes: 0 done, 1 failed, 2 wrong use or config, 3 not (yet) true.

Examples:
  sunder demo                                        see the whole story on embedded parts, in under a minute
  sunder config example > sunder.toml                start a configuration
  sunder check                                       config, connections, topics, keys: each ok, warn or fail with the fix
  sunder run                                         all roles, until SIGTERM
  sunder open --seller A1 --order 111-2222222-3333333 --purpose invoice --role invoicing"
)]
pub struct Cli {
    /// The configuration file.
    #[arg(long, global = true, default_value = "sunder.toml", value_name = "FILE")]
    pub config: PathBuf,
    /// One JSON document on standard output; the log stays on standard error.
    #[arg(long, global = true)]
    pub json: bool,
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Show everything on embedded parts: simulator, in-memory broker, SQLite, a virtual clock.
    ///
    /// Leaves sunder-demo/ in the working folder: warehouse.db, certificates/CASE/certificate.note, certificate.pub, README.txt.
    #[cfg(feature = "embedded")]
    Demo(DemoArgs),
    /// Run the long-running roles, all by default: poll, split, sink, retain, serve.
    #[command(after_help = "Examples:\n  sunder run\n  sunder run split sink\n  sunder run --until-idle --json")]
    Run(RunArgs),
    /// Serve a local SP-API with published limits, faults and its own clock.
    Simulate(crate::simulator::SimulateArgs),
    /// Check config, connections, topic drift, key rights, clock and planner statistics.
    Check,
    /// Make the topics as declared, or show drift.
    Topics {
        /// What to do with them.
        #[command(subcommand)]
        command: TopicsCommand,
    },
    /// Who is polled.
    Sellers {
        /// What to do with them.
        #[command(subcommand)]
        command: SellersCommand,
    },
    /// Open an erasure case.
    #[command(
        after_help = "Examples:\n  sunder erase --seller A1 --order 111-2222222-3333333 --reason buyer-request --wait\n  sunder erase --seller A1 --orders-file orders.txt --reason amazon-request --now --wait\n  sunder erase --seller A1 --buyer-email - --purpose rights --role dpo --reason buyer-request --export out --wait < address.txt\n  sunder erase --seller A1 --all --reason seller-request --dry-run"
    )]
    Erase(EraseArgs),
    /// Legal holds: fields that a law keeps longer than their order, in a cold store under a key of their own.
    #[command(
        after_help = "Example:\n  sunder hold add --seller A1 --order 111-2222222-3333333 --statute \"HGB 257\" --document invoice --fields buyer_name,recipient_address --until 2034-12-31"
    )]
    Hold {
        /// What to do with them.
        #[command(subcommand)]
        command: HoldCommand,
    },
    /// Compare the declared copies with what is really there: topics, tables, views, files, and ways by which copies leave; exit 3 on an
    /// unknown one.
    Inventory,
    /// Show open and closed cases, or one of them.
    Cases {
        /// The case; left out: all.
        id: Option<String>,
    },
    /// Read every store again for one case, or for every closed one; exit 3 where something does not hold.
    #[command(after_help = "Examples:\n  sunder verify case-20261122-0123456789abcdef\n  sunder verify --all")]
    Verify {
        /// The case.
        #[arg(required_unless_present = "all")]
        id: Option<String>,
        /// Every closed case, in one reading: after brokers came, went or came back. What is found is deleted again.
        #[arg(long, conflicts_with = "id")]
        all: bool,
    },
    /// Write a certificate's files, print the key that checks it, or check one offline.
    #[command(
        args_conflicts_with_subcommands = true,
        after_help = "Examples:\n  sunder certificate case-20261122-0123456789abcdef --out cert\n  sunder certificate key\n  sunder certificate check cert --key certificate.pub\n  sunder certificate log --out log\n  sunder certificate check cert --key certificate.pub --log log --checkpoint kept.checkpoint"
    )]
    Certificate {
        /// Check, or print the key.
        #[command(subcommand)]
        command: Option<CertificateCommand>,
        /// The case whose certificate is written.
        id: Option<String>,
        /// The folder to write to.
        #[arg(long, value_name = "DIR")]
        out: Option<PathBuf>,
    },
    /// The root key and the sellers' wrapping keys: how they stand, rotation, and where every key lies.
    Keys {
        /// What to do with them.
        #[command(subcommand)]
        command: KeysCommand,
    },
    /// Read sealed fields for a registered purpose; each read is an audit event.
    #[command(after_help = "Exit codes: 0 readable, 1 denied, 3 erased or absent.")]
    Open(OpenArgs),
    /// Build a sink again from the log beside the live one, then switch.
    #[command(
        after_help = "No case is certified while it runs. With --until the warehouse shows that time until a process with the role sink starts and brings it to the present.\n\nExamples:\n  sunder replay --sink warehouse\n  sunder replay --sink vault --json\n  sunder replay --sink warehouse --until 2026-11-01T00:00:00Z\n\nExit codes: 0 switched; 1 failed, the live sink is as it was; 3 the log holds nothing for it, or with --until a sink runs."
    )]
    Replay(ReplayArgs),
    /// Go from a row of the warehouse back to its event and the call that fetched it.
    #[command(
        after_help = "Examples:\n  sunder trace --table orders --key 'A1EXAMPLE|0c0c7d211d87dce7b7a4479ac42d10f6'\n  sunder trace --table order_items --key 2958fb102e54709c734f6060f36b1e2a --json\n\nExit codes: 0 found, 3 no such row."
    )]
    Trace(TraceArgs),
    /// The audit log.
    Audit {
        /// What to do with it.
        #[command(subcommand)]
        command: AuditCommand,
    },
    /// The configuration's form.
    Config {
        /// What to print.
        #[command(subcommand)]
        command: ConfigCommand,
    },
}

impl Command {
    /// Whether what it prints is for reading along, without a log between the lines.
    #[must_use]
    pub const fn tells_a_story(&self) -> bool {
        #[cfg(feature = "embedded")]
        if matches!(self, Self::Demo(_)) {
            return true;
        }
        false
    }
}

/// `sunder demo`
#[cfg(feature = "embedded")]
#[derive(Debug, Args)]
pub struct DemoArgs {
    /// Sellers of the simulated API.
    #[arg(long, default_value_t = 3)]
    pub sellers: usize,
    /// Orders of all sellers together.
    #[arg(long, default_value_t = 300)]
    pub orders: usize,
    /// Seed of the simulated data.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// The folder that is left behind.
    #[arg(long, default_value = "sunder-demo", value_name = "DIR")]
    pub out: PathBuf,
}

/// A long-running role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Role {
    /// Fetch, classify, seal, publish.
    Poll,
    /// Split raw events into events, state and sealed blocks.
    Split,
    /// Write the warehouse and the vault.
    Sink,
    /// Sweep, work erasure cases, heartbeats.
    Retain,
    /// /livez, /readyz, /metrics.
    Serve,
}

impl Role {
    /// All roles.
    pub const ALL: [Self; 5] = [Self::Poll, Self::Split, Self::Sink, Self::Retain, Self::Serve];

    /// The name in logs and in the register of processes.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Poll => "poll",
            Self::Split => "split",
            Self::Sink => "sink",
            Self::Retain => "retain",
            Self::Serve => "serve",
        }
    }
}

/// `sunder run`
#[derive(Debug, Args)]
pub struct RunArgs {
    /// Roles of this process; left out: all.
    #[arg(value_enum)]
    pub roles: Vec<Role>,
    /// Exit 0 once every poller has caught up, every topic is drained and no case is due; 3 where a case is blocked.
    #[arg(long)]
    pub until_idle: bool,
}

/// `sunder keys`
#[derive(Debug, Subcommand)]
pub enum KeysCommand {
    /// Versions, their age and when they are due; exit 3 where the root key does not answer.
    Status,
    /// Make a new version of the root key and of the sellers' wrapping keys, wrap anew what lies under the old, and destroy the old.
    ///
    /// Runs beside everything else. One that was cut off goes on where it was. Backups of the key database from before a rotation of the
    /// root key no longer open: take one afterwards.
    #[command(
        after_help = "Examples:\n  sunder keys rotate                 everything\n  sunder keys rotate --root          the root key alone\n  sunder keys rotate --seller A1     the wrapping key of one seller"
    )]
    Rotate {
        /// The root key; without --seller nothing else.
        #[arg(long)]
        root: bool,
        /// The wrapping key of this seller; may be given several times.
        #[arg(long, value_name = "ID")]
        seller: Vec<String>,
    },
    /// Every key by kind: how many, what wraps it, every place a copy can be in, and what it goes with.
    Inventory,
}

/// `sunder topics`
#[derive(Debug, Subcommand)]
pub enum TopicsCommand {
    /// Make missing topics and set drifted settings back.
    Apply,
    /// Show drift; exit 3 where there is any.
    Diff,
}

/// `sunder sellers`
#[derive(Debug, Subcommand)]
pub enum SellersCommand {
    /// Register a seller; its refresh token is stored wrapped by the root key.
    Add {
        /// `selling_partner_id`.
        #[arg(long)]
        id: String,
        /// eu, na or fe.
        #[arg(long)]
        region: String,
        /// Marketplace ids, comma-separated.
        #[arg(long, value_delimiter = ',')]
        marketplaces: Vec<String>,
        /// File whose first line is the refresh token.
        #[arg(long, value_name = "FILE")]
        token_file: PathBuf,
        /// Readmit a removed seller, with new keys.
        #[arg(long)]
        readmit: bool,
    },
    /// List them.
    List,
    /// Stop polling one.
    Pause {
        /// `selling_partner_id`.
        id: String,
    },
    /// Off-board one: opens a case over everything; terminal.
    Remove {
        /// `selling_partner_id`.
        id: String,
    },
}

/// `sunder erase`
#[derive(Debug, Args)]
pub struct EraseArgs {
    /// `selling_partner_id`.
    #[arg(long)]
    pub seller: String,
    /// What the request is about.
    #[command(flatten)]
    pub scope: EraseScope,
    /// A purpose of the config that covers what is searched or exported.
    #[arg(long)]
    pub purpose: Option<String>,
    /// The role that is claimed for it.
    #[arg(long)]
    pub role: Option<String>,
    /// Write what the purpose may open of each order to a new folder first: one JSON file an order, readable by its owner alone.
    #[arg(long, value_name = "DIR", requires = "purpose")]
    pub export: Option<PathBuf>,
    /// Why.
    #[arg(long, value_parser = ["amazon-request", "seller-request", "buyer-request", "seller-offboarding", "reclassified"])]
    pub reason: String,
    /// Business rows too; the default for amazon-request and seller-request.
    #[arg(long)]
    pub with_business_data: bool,
    /// Force the log's segments to roll instead of waiting for their bound.
    #[arg(long)]
    pub now: bool,
    /// Only show what would go.
    #[arg(long)]
    pub dry_run: bool,
    /// Follow the case to its certificate; exit 3 where it is blocked for 20 s, or not certified within --wait-limit.
    #[arg(long)]
    pub wait: bool,
    /// How long --wait waits; the case goes on afterwards. Removal within the topics' bound takes about 6 h under the production profile.
    #[arg(long, default_value = "12h", value_name = "PERIOD")]
    pub wait_limit: Period,
}

/// What an erasure request is about: orders, a buyer, or everything of the seller.
#[derive(Debug, Args)]
#[group(required = true, multiple = true)]
pub struct EraseScope {
    /// Amazon's order id; may be given again.
    #[arg(long, conflicts_with_all = ["all", "buyer_email", "buyer_name"])]
    pub order: Vec<String>,
    /// File with an order id a line; `-` is standard input.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["all", "buyer_email", "buyer_name"])]
    pub orders_file: Option<PathBuf>,
    /// File whose first line is the buyer's e-mail address; `-` is standard input. Never the address itself: arguments are seen by others.
    #[arg(long, value_name = "FILE", conflicts_with = "all", requires = "purpose")]
    pub buyer_email: Option<PathBuf>,
    /// File whose first line is the buyer's name; `-` is standard input. With an e-mail address both must match.
    #[arg(long, value_name = "FILE", conflicts_with = "all", requires = "purpose")]
    pub buyer_name: Option<PathBuf>,
    /// Everything of the seller.
    #[arg(long)]
    pub all: bool,
}

/// `sunder hold`
#[derive(Debug, Subcommand)]
pub enum HoldCommand {
    /// Keep fields of an order.
    Add(HoldAdd),
    /// List them.
    List,
    /// End one now: its fields go by the next sweep, with a certificate.
    Remove {
        /// The hold.
        id: String,
    },
}

/// `sunder hold add`
#[derive(Debug, Args)]
pub struct HoldAdd {
    /// `selling_partner_id`.
    #[arg(long)]
    pub seller: String,
    /// Amazon's order id.
    #[arg(long)]
    pub order: String,
    /// The law that asks for it, e.g. "HGB 257"; it stands on certificates.
    #[arg(long)]
    pub statute: String,
    /// The class of document.
    #[arg(long, value_parser = ["invoice", "credit-note", "customs"])]
    pub document: String,
    /// Groups of fields, comma-separated: those that such a document needs.
    #[arg(long, value_delimiter = ',', required = true)]
    pub fields: Vec<String>,
    /// When it ends: a day (its end, UTC), or an instant in ISO 8601.
    #[arg(long)]
    pub until: String,
    /// The one purpose of the config that may read it; left out: any that covers its fields.
    #[arg(long)]
    pub purpose: Option<String>,
}

/// `sunder certificate`
#[derive(Debug, Subcommand)]
pub enum CertificateCommand {
    /// Print the verifier key on one line.
    Key,
    /// Check a certificate offline: no config, no network.
    Check(CheckArgs),
    /// Write the whole log as files: its signed head and its tiles, hashes alone. With it anyone sees that nothing was dropped.
    Log {
        /// The folder to write to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
    /// Make a signing key file (mode 0600).
    NewSigner {
        /// Where to write it.
        file: PathBuf,
        /// The key's name in notes, e.g. example.com/sunder.
        #[arg(long)]
        name: String,
    },
}

/// `sunder certificate check`
#[derive(Debug, Args)]
pub struct CheckArgs {
    /// certificate.note, or the folder it lies in. The other files of the certificate are checked too where they lie beside it.
    pub file: PathBuf,
    /// The verifier key, or a file that holds it. Take it from where its owner publishes it, not from the folder.
    #[arg(long)]
    pub key: String,
    /// A signed head of the log that you kept from before: shows that nothing was rewritten or dropped since.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Option<PathBuf>,
    /// The log's folder, as `sunder certificate log` writes it.
    #[arg(long, value_name = "DIR")]
    pub log: Option<PathBuf>,
}

/// `sunder open`
#[derive(Debug, Args)]
pub struct OpenArgs {
    /// `selling_partner_id`.
    #[arg(long)]
    pub seller: String,
    /// Amazon's order id.
    #[arg(long)]
    pub order: String,
    /// A purpose of the config.
    #[arg(long)]
    pub purpose: String,
    /// The role that is claimed; without one the read is denied.
    #[arg(long)]
    pub role: Option<String>,
    /// Groups of fields, comma-separated; left out: all of the purpose.
    #[arg(long, value_delimiter = ',')]
    pub fields: Vec<String>,
}

/// `sunder replay`
#[derive(Debug, Args)]
pub struct ReplayArgs {
    /// The sink.
    #[arg(long, value_enum)]
    pub sink: crate::run::replay::Which,
    /// Only what was collected up to this time, ISO 8601 (warehouse only).
    #[arg(long, value_name = "TIME")]
    pub until: Option<String>,
}

/// `sunder trace`
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// The table: orders, order_items, packages or inventory_levels.
    #[arg(long)]
    pub table: String,
    /// The row's key, parts joined by `|` as on the topic; neighbouring parts are enough where they name one row, and so is an event id.
    #[arg(long)]
    pub key: String,
}

/// `sunder audit`
#[derive(Debug, Subcommand)]
pub enum AuditCommand {
    /// Check the audit chain and the log of certificates, against themselves and what was published of them; exit 3 where they do not hold.
    Verify(VerifyArgs),
    /// Write the newest signed heads of both logs, for others to keep: with one of them `verify` finds what was rewritten since.
    Checkpoint {
        /// The folder to write to.
        #[arg(long, value_name = "DIR")]
        out: PathBuf,
    },
}

/// `sunder audit verify`
#[derive(Debug, Args)]
pub struct VerifyArgs {
    /// A signed head that was kept from before; may be given more than once.
    #[arg(long, value_name = "FILE")]
    pub checkpoint: Vec<PathBuf>,
    /// Do not read what was published on Kafka: a log that was cut off at its end is then only found by a checkpoint.
    #[arg(long)]
    pub database_only: bool,
}

/// `sunder config`
#[derive(Debug, Subcommand)]
pub enum ConfigCommand {
    /// The commented example.
    Example,
    /// The form as JSON Schema.
    Schema,
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn config_and_json_stand_before_or_after_the_command() {
        for words in [["sunder", "--json", "--config", "x.toml", "check"], ["sunder", "check", "--json", "--config", "x.toml"]] {
            let cli = Cli::parse_from(words);
            assert!(cli.json && cli.config.to_str() == Some("x.toml"));
        }
    }
}
