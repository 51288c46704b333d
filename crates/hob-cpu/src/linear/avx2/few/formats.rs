//! What the kernels must know of each format besides its packed form. It must not know instructions.

use hob_quant::Format;

use crate::linear::shape::Shape;

/// How the bytes that planes decode to are multiplied.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Class {
    /// Unsigned: 8, 4 or 2 steps fit one 16-bit sum.
    Unsigned(usize),
    /// Unsigned codes of 3 bits, two to a byte, with scales per 16.
    Triples,
    /// Signed, with -128: magnitude times the activation with the weight's sign.
    Signed,
    /// Signed without -128: the activation's magnitude times the weight with the activation's sign.
    Levels,
}

/// A format with a packed form.
pub trait Coded {
    const FORMAT: Format;
    const CLASS: Class;
    /// The signed values of 4-bit codes, where they are indices.
    const TABLE: Option<[i8; 16]> = None;
    /// What a decoded byte exceeds the code by.
    const OFFSET: i8 = Self::SHAPE.offset;
    const SHAPE: Shape = match Shape::of(Self::FORMAT) {
        Some(shape) => shape,
        None => panic!("only packed formats have kernels"),
    };
}

macro_rules! coded {
    ($($name:ident: $class:expr $(, $item:ident: $type:ty = $value:expr)*;)*) => {$(
        pub struct $name;
        impl Coded for $name {
            const FORMAT: Format = Format::$name;
            const CLASS: Class = $class;
            $(const $item: $type = $value;)*
        }
    )*};
}

use Class::{Levels, Signed, Triples, Unsigned};

const IQ4: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];
/// Doubled e2m1 values plus 12, which makes them unsigned.
const E2M1: [i8; 16] = [12, 13, 14, 15, 16, 18, 20, 24, 12, 11, 10, 9, 8, 6, 4, 0];

// The largest sums of 16 bits: 8 steps of 15 * 127 * 2 = 30480, 4 of 31 * 127 * 2 = 31496, 2 of 63 * 127 * 2 = 32004.
// Formats with scales per 16 take 4 steps at most.
coded! {
    Q4_0: Unsigned(8);
    Q4_1: Unsigned(8);
    Q5_0: Unsigned(4);
    Q5_1: Unsigned(4);
    Q8_0: Signed;
    IQ4NL: Levels, TABLE: Option<[i8; 16]> = Some(IQ4);
    MXFP4: Unsigned(4), TABLE: Option<[i8; 16]> = Some(E2M1), OFFSET: i8 = 12;
    Q2K: Unsigned(4);
    Q3K: Triples;
    Q4K: Unsigned(8);
    Q5K: Unsigned(4);
    Q6K: Unsigned(2);
    IQ4XS: Levels, TABLE: Option<[i8; 16]> = Some(IQ4);
}
