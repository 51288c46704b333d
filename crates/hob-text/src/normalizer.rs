//! The normalizers of a tokenizer.json: those of the `tokenizers` crate, except for precompiled character maps, which
//! that crate follows without looking whether their indices are in bounds.

use tokenizers::normalizers::NormalizerWrapper;
use tokenizers::{NormalizedString, Normalizer};

use crate::charsmap::Charsmap;

#[derive(Debug)]
pub(crate) enum Normal {
    Component(NormalizerWrapper),
    Charsmap(Charsmap),
    Sequence(Vec<Normal>),
}

impl Normalizer for Normal {
    fn normalize(&self, text: &mut NormalizedString) -> tokenizers::Result<()> {
        match self {
            Normal::Component(component) => component.normalize(text),
            Normal::Charsmap(map) => {
                // Offsets into the original text are lost; nothing here asks for them.
                let mapped = map.by_graphemes(text.get());
                if mapped != text.get() {
                    *text = NormalizedString::from(mapped);
                }
                Ok(())
            }
            Normal::Sequence(all) => all.iter().try_for_each(|one| one.normalize(text)),
        }
    }
}
