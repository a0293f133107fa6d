//! The contract against Amazon's published models and sandbox answers, and against hostile input.

#[cfg(test)]
mod classify_hostile;
#[cfg(test)]
mod classify_laws;
#[cfg(test)]
mod classify_models;
#[cfg(test)]
mod classify_sandbox;
#[cfg(test)]
mod docs;
#[cfg(test)]
mod fields_document;
#[cfg(test)]
mod support;
