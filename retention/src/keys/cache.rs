//! Unwrapped data keys in memory, bounded: two generations, the older is dropped when the younger is full.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use sunder_schemas::ids::KeyId;

use super::seal::DataKey;

#[derive(Default)]
struct Generations {
    young: HashMap<KeyId, Arc<DataKey>>,
    old: HashMap<KeyId, Arc<DataKey>>,
}

/// A bounded cache of data keys.
pub(crate) struct Cache {
    generations: Mutex<Generations>,
    half: usize,
}

impl Cache {
    /// At most `keys_max` keys.
    pub(crate) fn new(keys_max: usize) -> Self {
        Self { generations: Mutex::default(), half: keys_max.div_ceil(2).max(1) }
    }

    /// The key, if it is here; it then counts as used.
    pub(crate) fn get(&self, id: KeyId) -> Option<Arc<DataKey>> {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(key) = generations.young.get(&id) {
            return Some(Arc::clone(key));
        }
        let key = generations.old.remove(&id)?;
        self.put(&mut generations, Arc::clone(&key));
        Some(key)
    }

    /// Keeps `key`.
    pub(crate) fn insert(&self, key: Arc<DataKey>) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        self.put(&mut generations, key);
    }

    /// Drops `id`.
    pub(crate) fn remove(&self, id: KeyId) {
        let mut generations = self.generations.lock().unwrap_or_else(PoisonError::into_inner);
        generations.young.remove(&id);
        generations.old.remove(&id);
    }

    /// Drops all.
    pub(crate) fn clear(&self) {
        *self.generations.lock().unwrap_or_else(PoisonError::into_inner) = Generations::default();
    }

    fn put(&self, generations: &mut Generations, key: Arc<DataKey>) {
        if generations.young.len() >= self.half {
            generations.old = std::mem::take(&mut generations.young);
        }
        generations.young.insert(key.id(), key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_stays_within_its_bound_and_keeps_what_is_used() {
        let cache = Cache::new(10);
        let used = Arc::new(DataKey::ephemeral());
        cache.insert(Arc::clone(&used));
        for _ in 0..100 {
            cache.insert(Arc::new(DataKey::ephemeral()));
            assert!(cache.get(used.id()).is_some());
            let generations = cache.generations.lock().unwrap();
            assert!(generations.young.len() + generations.old.len() <= 10);
        }
        cache.remove(used.id());
        assert!(cache.get(used.id()).is_none());
    }
}
