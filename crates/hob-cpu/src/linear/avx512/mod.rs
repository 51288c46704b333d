//! AVX-512 forms of the float products; the int8 ones stand in [`super::vnni`].

pub mod float;
