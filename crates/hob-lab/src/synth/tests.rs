//! Synthesis without a device: tables, names, bytes, keys.

use super::*;

/// Small enough for everything, with a bit of each family.
fn tiny(name: &str) -> Shape {
    let shape = find(name).expect(name).clone();
    let experts = shape.experts.map(|e| Experts {
        count: 8,
        top_k: 2,
        ffn: 256,
        shared_ffn: e.shared_ffn.min(256),
        ..e
    });
    // A layer of every kind, and one that shares of each.
    let own = |kinds: Kinds| if kinds.own < shape.layers { 2 } else { kinds.own };
    let kinds = shape.kinds.map(|kinds| Kinds { pattern: 2, own: own(kinds), ..kinds });
    let sizes = Shape { dim: 256, layers: 4, ffn: 512, heads: 4, kv_heads: 2, head_dim: 64, ..shape };
    Shape { vocab: 512, experts, kinds, ..sizes }
}

/// One shape of every architecture.
fn families() -> Vec<Shape> {
    let mut seen = Vec::new();
    let first = |s: &&Shape| {
        !seen.contains(&s.arch) && {
            seen.push(s.arch);
            true
        }
    };
    let more = ["gemma4-e4b", "gemma4-26b-a4b", "gemma4-31b", "glm-4.7-flash"].map(tiny);
    SHAPES.iter().filter(first).map(|s| tiny(s.name)).chain(more).collect()
}

fn runs(arch: &str) -> bool {
    known_architectures().any(|known| known == arch)
}

#[test]
fn every_shape_makes_a_table() {
    for shape in SHAPES {
        let synth =
            Synth::new(shape.clone(), Mix::Plain(Format::Q4_0), Some(Format::Q8_0)).expect(shape.name);
        let bytes: u64 = synth.tensors().iter().map(|t| t.bytes).sum();
        assert!(bytes > 50_000_000, "{}", shape.name);
        for t in synth.tensors() {
            assert_eq!(synth.tensor(&t.name).map(|found| &found.name), Some(&t.name));
            assert_eq!(synth.open(t).len(), t.bytes);
        }
        assert_eq!(synth.tensor("output.weight").is_none(), shape.tied);
        Synth::parse(&format!("{}:q4_k_m", shape.name)).expect("a mix always fits");
    }
}

/// The table here and hob-model's slots are written apart and must agree wherever hob-model has the architecture.
#[test]
fn tables_agree_with_hob_model() {
    let mut checked = 0;
    for shape in families().into_iter().filter(|s| runs(s.arch)) {
        let synth = Synth::new(shape, Mix::Plain(Format::Q4_0), None).expect("tiny");
        let info = synth.info().unwrap_or_else(|e| panic!("{}: {e}", synth.name()));
        assert!(info.unexpected.is_empty(), "{}: {:?}", synth.name(), info.unexpected);
        assert_eq!(info.config.arch, synth.shape.arch);
        assert_eq!((info.config.layers.len(), info.config.vocab, info.config.dim), (4, 512, 256));
        assert_eq!(info.config.rms_eps, synth.shape.rms_eps);
        assert_eq!(info.config.ctx_train, synth.shape.ctx_train);
        assert_eq!(info.config.tied, synth.shape.tied);
        checked += 1;
    }
    assert!(checked >= 2);
}

#[test]
fn an_architecture_that_does_not_run_is_named() {
    for shape in families().into_iter().filter(|s| !runs(s.arch)) {
        let arch = shape.arch;
        let synth =
            Synth::new(shape, Mix::Plain(Format::Q8_0), None).expect("tiny").runnable().expect("tiny");
        match synth.info() {
            Ok(info) => {
                assert_eq!((arch, info.config.arch.as_str()), ("qwen3", "llama"));
                assert!(synth.description().contains("norms of Q and K"), "{}", synth.description());
            }
            Err(error) => {
                let error = error.to_string();
                assert!(error.contains(arch) && error.contains("llama"), "{error}");
            }
        }
    }
}

#[test]
fn names_round_trip_and_say_what_is_missing() {
    for name in [
        "deepseek-v2-lite:q4_k",
        "qwen3-1.7b:q4_0",
        "smollm2-135m:q4_1:q8_0",
        "qwen2.5-7b:q4_k_m",
        "qwen3-30b-a3b:moe_q3_k",
    ] {
        assert_eq!(Synth::parse(name).expect(name).name(), name);
    }
    assert_eq!(Synth::parse("QWEN3-0.6B:Q8_0").expect("any case").name(), "qwen3-0.6b:q8_0");
    let cut = Synth::parse("qwen3-30b-a3b:q4_k_m").and_then(|s| s.with_layers(12)).expect("12 layers");
    assert_eq!(cut.name(), "qwen3-30b-a3b:q4_k_m (12 of 48 layers)");
    assert!(cut.tensor("blk.12.attn_q.weight").is_none() && cut.tensor("blk.11.attn_q.weight").is_some());
}

#[test]
fn wrong_descriptions_name_what_is_known() {
    for (text, part) in [
        ("qwen3-1.7b", "SHAPE:TYPE"),
        ("a:q4_0:q4_0:q4_0", "SHAPE:TYPE"),
        ("gpt-5:q4_0", "smollm2-135m"),
        ("qwen3-8b:q4_9", "q4_k_m"),
        ("qwen3-8b:i32", "q4_0"),
        ("qwen3-8b:q4_0:q4_k_m", "q4_0"),
        ("smollm2-135m:q4_k", "256"),
    ] {
        let error = Synth::parse(text).err().expect(text).to_string();
        assert!(error.contains(part), "{text}: {error}");
    }
    for layers in [0, 49] {
        let error = Synth::parse("qwen3-30b-a3b:q4_k").and_then(|s| s.with_layers(layers)).err();
        assert!(error.expect("refused").to_string().contains("48"));
    }
}

#[test]
fn bytes_are_the_tensors_own_and_end_where_it_ends() {
    let synth = Synth::parse("smollm2-135m:q4_0").expect("parses");
    let other = Synth::parse("smollm2-135m:q4_0").expect("parses").with_seed(7);
    let read = |synth: &Synth, name: &str, offset, n| {
        let mut buf = vec![0; n];
        synth.open(synth.tensor(name).expect(name)).read_at(offset, &mut buf).map(|()| buf)
    };
    let q = |synth, layer| read(synth, &format!("blk.{layer}.attn_q.weight"), 0, 64).expect("q");
    assert_ne!(q(&synth, 0), q(&synth, 1));
    assert_ne!(q(&synth, 0), q(&other, 0));
    assert_eq!(q(&synth, 0), q(&synth, 0));
    assert_eq!(read(&synth, "output_norm.weight", 4, 4).expect("norm"), 1f32.to_le_bytes());
    assert_eq!(read(&synth, "output_norm.weight", 5, 3).expect("norm"), 1f32.to_le_bytes()[1..]);
    let len = synth.tensor("output_norm.weight").expect("norm").bytes;
    assert!(read(&synth, "output_norm.weight", len - 3, 4).is_err());
    assert!(read(&synth, "output_norm.weight", u64::MAX, 4).is_err());
}

#[test]
fn given_values_are_what_the_architecture_means() {
    let synth = Synth::parse("llama3.2-1b:q8_0").expect("parses");
    let divisors = divisors(synth.shape());
    // High frequencies stay, low ones are divided by the factor.
    assert_eq!((divisors.len(), divisors[0], divisors[31]), (32, 1.0, 32.0));
    assert!(divisors.is_sorted());
    let tensor = synth.tensor("rope_freqs.weight").expect("it has them");
    let mut bytes = [0; 4];
    synth.open(tensor).read_at(31 * 4, &mut bytes).expect("the last");
    assert_eq!(f32::from_le_bytes(bytes), 32.0);
    assert!(decays(32).iter().all(|&d| d < 0.0 && d > -4.5));
}
