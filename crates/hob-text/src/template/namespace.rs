//! `namespace()`: the one value a template may change. Replaces the engine's own, whose contents could refer to
//! themselves and would then never be freed.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object};
use minijinja::{Error, ErrorKind, Value};

use super::meter;
use super::values::Args;

#[derive(Debug, Default)]
pub(super) struct Namespace {
    data: Mutex<BTreeMap<Arc<str>, Value>>,
}

impl Object for Namespace {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get_value_by_str(key.as_str()?)
    }

    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.data.lock().unwrap_or_else(PoisonError::into_inner).get(key).cloned()
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        Enumerator::Values(data.keys().cloned().map(Value::from).collect())
    }
}

impl Namespace {
    fn set(&self, key: &str, value: Value) {
        let mut data = self.data.lock().unwrap_or_else(PoisonError::into_inner);
        let old = data.insert(key.into(), value);
        // The old value may be a namespace too, or hold this one: drop it after the lock.
        drop(data);
        drop(old);
    }

    /// Forgets everything.
    pub(super) fn clear(&self) {
        let data = std::mem::take(&mut *self.data.lock().unwrap_or_else(PoisonError::into_inner));
        drop(data);
    }
}

/// `namespace(dict, **values)`.
pub(super) fn namespace(args: &[Value]) -> Result<Value, Error> {
    let args = Args::new(args);
    args.at_most(1)?;
    meter::charge_map(4)?;
    let namespace = Arc::new(Namespace::default());
    let pairs = args.get(0).and_then(Value::as_object).and_then(|object| object.try_iter_pairs());
    for (key, value) in pairs.into_iter().flatten() {
        store(&namespace, key.as_str().unwrap_or_default(), value)?;
    }
    for (key, value) in args.named() {
        store(&namespace, &key, value)?;
    }
    meter::remember(namespace.clone());
    Ok(Value::from_dyn_object(namespace))
}

/// `{% set target.name = value %}`.
pub(super) fn set_attribute(target: &Value, name: &Value, value: &Value) -> Result<Value, Error> {
    let Some(namespace) = target.downcast_object_ref::<Namespace>() else {
        let found = target.kind();
        let text = format!("only a namespace() can be assigned to, not a value of type {found}");
        return Err(Error::new(ErrorKind::InvalidOperation, text));
    };
    store(namespace, name.as_str().unwrap_or_default(), value.clone())?;
    Ok(Value::UNDEFINED)
}

fn store(namespace: &Namespace, key: &str, value: Value) -> Result<(), Error> {
    // Names come from the source or from literal maps; an entry is charged as one of a map.
    meter::charge(key.len() + 64)?;
    namespace.set(key, value);
    Ok(())
}
