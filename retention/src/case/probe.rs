//! Points at which a case can be held: before, in and after each of its actions.
//!
//! A test gives the engine a [`Probe`] that never returns from one of them and drops the engine's future there: what a killed process
//! leaves behind, without a process. Without a probe, as in the program, a point is a look at an empty option.

use async_trait::async_trait;
use sunder_schemas::ids::CaseId;

use super::engine::Engine;

/// Where in an action a point lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Moment {
    /// Nothing of the action is done.
    Before,
    /// Part of it is done, or all of it and its event is not written; the word says which part.
    Within(&'static str),
    /// Its event is committed.
    After,
}

/// A point of a case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Point {
    /// The action, by [`machine::Action::name`](super::machine::Action::name), `open` for the opening of a case.
    pub action: &'static str,
    /// Where in it.
    pub moment: Moment,
}

/// Is told of every point that a case passes.
#[async_trait]
pub trait Probe: Send + Sync {
    /// Called at each point; the case goes on when it returns.
    async fn reached(&self, case: &CaseId, point: Point);
}

impl Engine {
    /// Tells the probe, if there is one, that `case` reached this point.
    pub(super) async fn reach(&self, case: &CaseId, action: &'static str, moment: Moment) {
        if let Some(probe) = &self.probe {
            probe.reached(case, Point { action, moment }).await;
        }
    }
}
