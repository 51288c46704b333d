//! The table behind a device's handles: values by index, each with the generation that its handle must show.
//!
//! It owns the rule that a stale or foreign handle is an error. It must not know what the values are.

use std::fmt::Debug;
use std::marker::PhantomData;
use std::sync::atomic::{AtomicU16, Ordering};

use crate::{Buf, ComputeError, Pool, Result, Weight};

/// A number for a new device, unlike those of the other devices of this process.
pub fn next_device() -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// A `{device, index, generation}` name.
pub trait Handle: Copy + Debug + PartialEq {
    fn new(device: u16, index: u32, generation: u32) -> Self;
    /// `(device, index, generation)`.
    fn parts(self) -> (u16, u32, u32);
}

macro_rules! impl_handle {
    ($($name:ident),*) => {$(
        impl Handle for $name {
            fn new(device: u16, index: u32, generation: u32) -> Self {
                Self { device, index, generation }
            }
            fn parts(self) -> (u16, u32, u32) {
                (self.device, self.index, self.generation)
            }
        }
    )*};
}
impl_handle!(Buf, Weight, Pool);

struct Entry<T> {
    generation: u32,
    value: Option<T>,
}

/// Values of one device, named by handles of type `H`.
pub struct Slots<H, T> {
    device: u16,
    entries: Vec<Entry<T>>,
    free: Vec<u32>,
    handle: PhantomData<fn() -> H>,
}

impl<H: Handle, T> Slots<H, T> {
    pub fn new(device: u16) -> Self {
        Slots { device, entries: Vec::new(), free: Vec::new(), handle: PhantomData }
    }

    /// Stores a value and names it.
    pub fn insert(&mut self, value: T) -> H {
        if let Some(index) = self.free.pop() {
            let entry = &mut self.entries[index as usize];
            entry.value = Some(value);
            return H::new(self.device, index, entry.generation);
        }
        self.entries.push(Entry { generation: 0, value: Some(value) });
        H::new(self.device, (self.entries.len() - 1) as u32, 0)
    }

    /// Takes the value out; its handle is stale from now on.
    ///
    /// # Errors
    /// [`ComputeError::Handle`] like every other look-up.
    pub fn remove(&mut self, verb: &'static str, handle: H) -> Result<T> {
        let at = self.index(verb, handle)?;
        let entry = &mut self.entries[at];
        let value = entry.value.take().ok_or_else(|| stale(verb, handle))?;
        // A slot whose generations are used up is retired, so no handle ever names a second value.
        if let Some(next) = entry.generation.checked_add(1) {
            entry.generation = next;
            self.free.push(at as u32);
        }
        Ok(value)
    }

    /// # Errors
    /// [`ComputeError::Handle`] for a handle of another device or of freed memory.
    pub fn get(&self, verb: &'static str, handle: H) -> Result<&T> {
        let at = self.index(verb, handle)?;
        self.entries[at].value.as_ref().ok_or_else(|| stale(verb, handle))
    }

    /// # Errors
    /// As [`Slots::get`].
    pub fn get_mut(&mut self, verb: &'static str, handle: H) -> Result<&mut T> {
        let at = self.index(verb, handle)?;
        self.entries[at].value.as_mut().ok_or_else(|| stale(verb, handle))
    }

    /// Several different values at once.
    ///
    /// # Errors
    /// As [`Slots::get`]; [`ComputeError::Shape`] when two handles name the same value.
    pub fn get_disjoint_mut<const N: usize>(
        &mut self,
        verb: &'static str,
        handles: [H; N],
    ) -> Result<[&mut T; N]> {
        let mut at = [0usize; N];
        for (slot, &handle) in at.iter_mut().zip(&handles) {
            *slot = self.index(verb, handle)?;
        }
        let entries = self.entries.get_disjoint_mut(at).map_err(|_| {
            ComputeError::shape(
                verb,
                "outputs that differ from each other and from the input",
                "one buffer twice",
            )
        })?;
        let mut values = entries.map(|entry| entry.value.as_mut());
        if let Some(missing) = values.iter().position(Option::is_none) {
            return Err(stale(verb, handles[missing]));
        }
        Ok(std::array::from_fn(|i| values[i].take().expect("every value was just found present")))
    }

    /// All values that are alive.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.entries.iter().filter_map(|e| e.value.as_ref())
    }

    fn index(&self, verb: &'static str, handle: H) -> Result<usize> {
        let (device, index, generation) = handle.parts();
        let entry = self.entries.get(index as usize);
        match entry {
            Some(e) if device == self.device && e.generation == generation && e.value.is_some() => {
                Ok(index as usize)
            }
            _ => Err(stale(verb, handle)),
        }
    }
}

fn stale<H: Handle>(verb: &'static str, handle: H) -> ComputeError {
    ComputeError::Handle { verb, handle: format!("{handle:?}") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_freed_slot_gets_a_new_generation() {
        let mut slots: Slots<Buf, &str> = Slots::new(3);
        let a = slots.insert("a");
        assert_eq!(slots.remove("free", a).unwrap(), "a");
        let b = slots.insert("b");
        assert_eq!(a.index, b.index);
        assert!(slots.get("norm", a).is_err());
        assert!(slots.remove("free", a).is_err());
        assert_eq!(*slots.get("norm", b).unwrap(), "b");
    }

    #[test]
    fn foreign_and_out_of_range_handles_are_errors() {
        let mut slots: Slots<Buf, u8> = Slots::new(1);
        let a = slots.insert(1);
        assert!(slots.get("x", Buf { device: 2, ..a }).is_err());
        assert!(slots.get("x", Buf { index: 7, ..a }).is_err());
        assert!(slots.get_mut("x", Buf { generation: 1, ..a }).is_err());
    }

    #[test]
    fn disjoint_refuses_the_same_value_twice() {
        let mut slots: Slots<Buf, u8> = Slots::new(1);
        let a = slots.insert(1);
        let b = slots.insert(2);
        assert!(matches!(slots.get_disjoint_mut("x", [a, a]), Err(ComputeError::Shape { .. })));
        let [x, y] = slots.get_disjoint_mut("x", [b, a]).unwrap();
        assert_eq!((*x, *y), (2, 1));
        slots.remove("free", b).unwrap();
        assert!(matches!(slots.get_disjoint_mut("x", [a, b]), Err(ComputeError::Handle { .. })));
    }
}
