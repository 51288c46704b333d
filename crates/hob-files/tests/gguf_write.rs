//! The writer and the reader are mirror images: what is written is read back equal, byte for byte on disk where the
//! format fixes the bytes; wrong use is refused with numbers and leaves no file.

use std::io::Write;

use hob_files::gguf_write::Writer;
use hob_files::{Array, FileError, Limits, ModelFile, StrArray, Value, gguf};
use hob_quant::Format;
use hob_testkit::rng::Rng;
use hob_testkit::temp::TempDir;

fn every_value() -> Vec<(&'static str, Value)> {
    let words: StrArray = ["", "a", "\u{120}the", "\u{1f980}", "\n"].into_iter().collect();
    vec![
        ("u8", 200u8.into()),
        ("i8", (-100i8).into()),
        ("u16", 60_000u16.into()),
        ("i16", (-30_000i16).into()),
        ("u32", u32::MAX.into()),
        ("i32", i32::MIN.into()),
        ("u64", u64::MAX.into()),
        ("i64", i64::MIN.into()),
        ("f32", f32::MIN_POSITIVE.into()),
        ("f64", f64::MAX.into()),
        ("true", true.into()),
        ("false", false.into()),
        ("text", "gr\u{fc}n".into()),
        ("words", words.clone().into()),
        ("no words", Value::Array(Array::Str(StrArray::default()))),
        ("u8s", vec![0u8, 255].into()),
        ("i8s", vec![-1i8, 1].into()),
        ("u16s", vec![1u16, 2, 3].into()),
        ("i16s", vec![-1i16].into()),
        ("u32s", vec![7u32; 9].into()),
        ("i32s", vec![-7i32].into()),
        ("u64s", vec![u64::MAX].into()),
        ("i64s", Vec::<i64>::new().into()),
        ("f32s", vec![0.5f32, -1.0].into()),
        ("f64s", vec![1e300f64].into()),
        ("bools", vec![true, false, true].into()),
        ("rows", vec![Array::U8(vec![1, 2]), Array::F32(vec![]), Array::Str(words)].into()),
    ]
}

#[test]
fn every_type_survives_the_round_trip() {
    let mut writer = Writer::new();
    for (key, value) in every_value() {
        writer.set(key, value);
    }
    let file = writer.to_bytes(&[]).unwrap();
    let header = gguf::parse(&file, &Limits::default()).unwrap();
    let read: Vec<(String, Value)> =
        header.metadata.iter().map(|(k, v)| (k.to_string(), v.clone())).collect();
    let written: Vec<(String, Value)> = every_value().into_iter().map(|(k, v)| (k.to_string(), v)).collect();
    assert_eq!(read, written);
    let mut again = Writer::new();
    header.metadata.copy_to(&mut again);
    assert_eq!(again.to_bytes(&[]).unwrap(), file);
}

#[test]
fn the_bytes_are_those_of_an_independent_writer() {
    // attacks/make.py writes GGUF from the format's description, without this crate.
    let control = concat!(env!("CARGO_MANIFEST_DIR"), "/../../attacks/control/tiny.gguf");
    let mut writer = Writer::new();
    writer.set("general.architecture", "llama").tensor("w", Format::F32, &[2, 4]).unwrap();
    assert_eq!(writer.to_bytes(&[&[0; 32]]).unwrap(), std::fs::read(control).unwrap());
}

#[test]
fn tensors_survive_the_round_trip_at_every_alignment() {
    let folder = TempDir::new("gguf-write");
    let path = folder.join("m.gguf");
    for alignment in [8u32, 32, 64, 4096] {
        let mut rng = Rng::new(alignment.into());
        let mut writer = Writer::new();
        writer.set("general.alignment", alignment);
        let shapes: [(&str, Format, &[usize]); 5] = [
            ("matrix", Format::F32, &[3, 5]),
            ("blocks", Format::Q4_0, &[2, 64]),
            ("experts", Format::Q8_0, &[2, 3, 32]),
            ("scalar", Format::F16, &[]),
            ("bytes", Format::I8, &[7]),
        ];
        let mut data = Vec::new();
        for (name, format, shape) in shapes {
            writer.tensor(name, format, shape).unwrap();
            let elements: usize = shape.iter().product();
            data.push(rng.bytes(elements / format.block_len() * format.block_bytes()));
        }
        let slices: Vec<&[u8]> = data.iter().map(Vec::as_slice).collect();
        writer.save(&path, &slices).unwrap();
        let model = ModelFile::open(&path).unwrap();
        assert_eq!(model.tensors().len(), shapes.len());
        for ((name, format, shape), bytes) in shapes.into_iter().zip(&data) {
            let t = model.tensor(name).unwrap();
            assert_eq!((t.format, t.shape.as_slice(), t.bytes), (format, shape, bytes.len() as u64));
            assert!(t.offset.is_multiple_of(alignment.into()), "{name} at {}", t.offset);
            assert_eq!(model.mapped(t), bytes.as_slice());
        }
    }
}

#[test]
fn data_may_come_in_pieces_but_must_have_the_right_length() {
    let mut writer = Writer::new();
    writer.tensor("a", Format::F32, &[4]).unwrap().tensor("b", Format::F32, &[2]).unwrap();
    let whole = writer.to_bytes(&[&[1; 16], &[2; 8]]).unwrap();

    let mut body = writer.begin(Vec::new()).unwrap();
    for _ in 0..4 {
        body.write_all(&[1; 4]).unwrap();
    }
    body.end_tensor().unwrap();
    body.tensor(&[2; 8]).unwrap();
    assert_eq!(body.finish().unwrap(), whole);

    let mut body = writer.begin(Vec::new()).unwrap();
    let error = body.tensor(&[1; 15]).unwrap_err();
    assert!(matches!(error, FileError::DataLength { expected: 16, found: 15, .. }), "{error}");
    let error = writer.to_bytes(&[&[1; 16]]).unwrap_err();
    assert!(matches!(error, FileError::DataCount { expected: 2, found: 1 }), "{error}");
    let error = writer.to_bytes(&[&[1; 16], &[2; 8], &[]]).unwrap_err();
    assert!(matches!(error, FileError::DataCount { expected: 2, found: 3 }), "{error}");
}

#[test]
fn a_failed_save_leaves_nothing() {
    let folder = TempDir::new("gguf-fail");
    let path = folder.join("m.gguf");
    let mut writer = Writer::new();
    writer.tensor("a", Format::F32, &[4]).unwrap();
    let error = writer.save(&path, &[&[0; 3]]).unwrap_err();
    assert!(error.to_string().contains("m.gguf"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

#[test]
fn what_the_reader_would_refuse_is_not_written() {
    type Misuse = dyn Fn(&mut Writer) -> Result<(), FileError>;
    let refused = |prepare: &Misuse| -> FileError {
        let mut writer = Writer::new();
        match prepare(&mut writer) {
            Err(e) => e,
            Ok(()) => writer.to_bytes(&[]).unwrap_err(),
        }
    };
    let cases: [(&str, &Misuse); 8] = [
        ("whole number", &|w| w.tensor("a", Format::Q4_0, &[2, 33]).map(drop)),
        ("zero", &|w| w.tensor("a", Format::F32, &[2, 0]).map(drop)),
        ("overflows", &|w| w.tensor("a", Format::F32, &[usize::MAX, 2]).map(drop)),
        ("dimensions", &|w| w.tensor("a", Format::F32, &[1; 5]).map(drop)),
        ("is empty", &|w| w.tensor("", Format::F32, &[1]).map(drop)),
        ("twice", &|w| w.tensor("a", Format::F32, &[1])?.tensor("a", Format::F32, &[1]).map(drop)),
        ("general.alignment", &|w| {
            w.set("general.alignment", 24u32);
            Ok(())
        }),
        ("control characters", &|w| {
            w.set("a\n", 1u8);
            Ok(())
        }),
    ];
    for (phrase, prepare) in cases {
        let message = refused(prepare).to_string();
        assert!(message.contains(phrase), "expected {phrase:?}: {message}");
    }
}
