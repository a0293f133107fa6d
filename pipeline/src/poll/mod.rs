//! Pollers: who is asked when, what was asked last, and how a page becomes sealed events on Kafka.
//!
//! Invariants: a cursor moves only when everything before it is acknowledged by Kafka; personal fields are sealed, or dropped and
//! counted, in this process's memory; nothing of a body that cannot be read is kept.
//!
//! A turn reads one dataset of one seller to the server's present end: `runner` lets turns begin as `schedule` says, `under_way` is what one
//! of them holds, `orders` and `inventory` know what to ask, `walk` reads a listing page by page, `publish` turns a page into acknowledged
//! events, `mark` keeps the cursor and the gaps.

mod cursor;
mod error;
mod fate;
mod inventory;
mod mark;
mod observe;
mod orders;
mod publish;
mod runner;
mod schedule;
mod under_way;
mod walk;

pub use cursor::Window;
pub use error::{PollError, Unreadable};
pub use runner::{Assignment, PollSettings, PolledSeller, Poller, Progress};
