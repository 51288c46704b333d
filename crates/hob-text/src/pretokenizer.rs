//! The names by which GGUF files say how text is split before merging (`tokenizer.ggml.pre`), and what else depends
//! on the name. The rules are facts about published models: from their tokenizer.json where llama.cpp's
//! `llama-vocab.cpp` quotes it, else from that file's table. Knows nothing of files.

use tokenizers::normalizers::{NFC, NormalizerWrapper};

use crate::error::{Result, TextError};
use crate::splitter::{Splitter, Step, Tail};

/// Everything that a pre-tokenizer's name decides.
pub(crate) struct Rules {
    pub(crate) normalizer: Option<NormalizerWrapper>,
    pub(crate) splitter: Splitter,
    /// A piece that is a token as it stands is not merged.
    pub(crate) ignore_merges: bool,
    /// Begin-of-sequence is added where the file does not say.
    pub(crate) add_bos: bool,
    /// Tokens are written in plain UTF-8 with `▁` for a space, not in GPT-2's byte alphabet.
    pub(crate) metaspace: bool,
}

/// One rule of a family. Alternatives stand in the order in which they are tried.
enum Rule {
    /// Words, then white space that leaves its last character to the next word; `\s*[\r\n]+` is among them.
    Words(&'static [&'static str]),
    /// The same without an alternative for line ends.
    Wrapped(&'static [&'static str]),
    /// Words, then white space in powers of two.
    Halved(&'static [&'static str]),
    /// Nothing but what matches.
    Cut(&'static str),
    /// Digits in threes from the right: the run, whether it stands alone, whether it must end its word.
    Thousands(&'static str, bool, bool),
}

use Rule::{Cut, Halved, Thousands, Words, Wrapped};

struct Family {
    names: &'static [&'static str],
    rules: &'static [Rule],
    traits: &'static [Trait],
}

#[derive(PartialEq)]
enum Trait {
    /// The original tokenizer composes characters (NFC); GGUF has no key for it, so the name decides.
    Compose,
    IgnoreMerges,
    AddBos,
    Metaspace,
}

use Trait::{AddBos, Compose, IgnoreMerges, Metaspace};

const SHORT_FORMS: &str = "(?i:'s|'t|'re|'ve|'m|'ll|'d)";
const LETTERS: &str = r"[^\r\n\p{L}\p{N}]?\p{L}+";
const DIGIT: &str = r"\p{N}";
const UP_TO_3_DIGITS: &str = r"\p{N}{1,3}";
const DIGITS: &str = r"\p{N}+";
const SIGNS: &str = r" ?[^\s\p{L}\p{N}]+[\r\n]*";
const SIGNS_AND_SLASHES: &str = r" ?[^\s\p{L}\p{N}]+[\r\n/]*";
const LINE_ENDS: &str = r"\s*[\r\n]+";

/// GPT-2's own pattern, from which all others descend.
const GPT2: Rule = Wrapped(&["'s|'t|'re|'ve|'m|'ll|'d", r" ?\p{L}+", r" ?\p{N}+", r" ?[^\s\p{L}\p{N}]+"]);
const LLAMA3: Rule = Words(&[SHORT_FORMS, LETTERS, UP_TO_3_DIGITS, SIGNS, LINE_ENDS]);
const QWEN2: Rule = Words(&[SHORT_FORMS, LETTERS, DIGIT, SIGNS, LINE_ENDS]);
const QWEN35: Rule = Words(&[
    SHORT_FORMS,
    r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+",
    DIGIT,
    r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*",
    LINE_ENDS,
]);

/// Words cut where upper case begins, `o200k`'s way: capitals then small letters, or capitals alone.
const SMALL: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+";
const CAPITAL: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*";
const SMALL_SHORT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const CAPITAL_SHORT: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const GPT4O: Rule = Words(&[SMALL_SHORT, CAPITAL_SHORT, UP_TO_3_DIGITS, SIGNS_AND_SLASHES, LINE_ENDS]);

/// The same, with Chinese characters on their own.
const KIMI_SMALL: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?";
const KIMI_CAPITAL: &str = r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]+[\p{Ll}\p{Lm}\p{Lo}\p{M}&&[^\p{Han}]]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?";

const CHINESE_AND_KANA: &str = r"[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
const DEEPSEEK_CHINESE: &str = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+";
const DEEPSEEK_SIGNS: &str =
    r"\s?[!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}]+";
const ASCII_SIGN_AND_WORD: &str = r##"[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+"##;
const MARKED_LETTERS: &str = r"[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+";
const DEEPSEEK3: Rule = Words(&[ASCII_SIGN_AND_WORD, MARKED_LETTERS, r" ?[\p{P}\p{S}]+[\r\n]*", LINE_ENDS]);
const ASIAN: &str = r"[\x{4E00}-\x{9FFF}\x{3400}-\x{4DBF}\x{F900}-\x{FAFF}\x{3040}-\x{309F}\x{30A0}-\x{30FF}\x{FF65}-\x{FF9F}\x{2F00}-\x{2FDF}\x{E40}-\x{E7F}\x{E80}-\x{EFF}\x{1780}-\x{17FF}\x{1000}-\x{109F}\x{AA60}-\x{AA7F}\x{A9E0}-\x{A9FF}\x{AC00}-\x{D7AF}\x{1100}-\x{11FF}]+";
const YOUTU_ASIAN: &str = r"[\x{AC00}-\x{D7A3}\x{3131}-\x{318E}]+|[\x{FF01}\x{2026}\x{201C}\x{201D}\x{2018}\x{2019}\x{2014}\x{FF1A}\x{FF1B}\x{FF0C}\x{3001}-\x{303F}\x{FE30}-\x{FE4F}]+|[\x{3105}-\x{312F}]+|[\x{4E00}-\x{9FA5}\x{3040}-\x{309F}\x{30A0}-\x{30FF}]+";
/// Everything up to the end of a sentence.
const CLAUSES: &str = r" ?[^(\s|.,!?\x{2026}\x{3002}\x{FF0C}\x{3001}\x{964}\x{6D4}\x{60C})]+";
/// Letters that have a case, as DeepSeek's first tokenizer lists them.
const DEEPSEEK_LETTERS: &str = concat!(
    r"\s?[",
    r"A-Za-z\x{B5}\x{C0}-\x{D6}\x{D8}-\x{F6}\x{F8}-\x{1BA}\x{1BC}-\x{1BF}\x{1C4}-\x{293}\x{295}-\x{2AF}",
    r"\x{370}-\x{373}\x{376}\x{377}\x{37B}-\x{37D}\x{37F}\x{386}\x{388}-\x{38A}\x{38C}\x{38E}-\x{3A1}",
    r"\x{3A3}-\x{3F5}\x{3F7}-\x{481}\x{48A}-\x{52F}\x{531}-\x{556}\x{10A0}-\x{10C5}\x{13A0}-\x{13F5}",
    r"\x{13F8}-\x{13FD}\x{1C90}-\x{1CBA}\x{1CBD}-\x{1CBF}\x{1D00}-\x{1D2B}\x{1D6B}-\x{1D77}",
    r"\x{1D79}-\x{1D9A}\x{1E00}-\x{1F15}\x{1F18}-\x{1F1D}\x{1F20}-\x{1F45}\x{1F48}-\x{1F4D}",
    r"\x{1F50}-\x{1F57}\x{1F59}\x{1F5B}\x{1F5D}\x{1F5F}-\x{1F7D}\x{1F80}-\x{1FB4}\x{1FB6}-\x{1FBC}\x{1FBE}",
    r"\x{1FC2}-\x{1FC4}\x{1FC6}-\x{1FCC}\x{1FD0}-\x{1FD3}\x{1FD6}-\x{1FDB}\x{1FE0}-\x{1FEC}",
    r"\x{1FF2}-\x{1FF4}\x{1FF6}-\x{1FFC}\x{2102}\x{2107}\x{210A}-\x{2113}\x{2115}\x{2119}-\x{211D}\x{2124}",
    r"\x{2126}\x{2128}\x{212A}-\x{212D}\x{212F}-\x{2134}\x{2139}\x{213C}-\x{213F}\x{2145}-\x{2149}\x{214E}",
    r"\x{2183}\x{2184}\x{2C00}-\x{2C7B}\x{2C7E}-\x{2CE4}\x{2CEB}-\x{2CEE}\x{2CF2}\x{2CF3}\x{A640}-\x{A66D}",
    r"\x{A680}-\x{A69B}\x{A722}-\x{A76F}\x{A771}-\x{A787}\x{A78B}-\x{A78E}\x{AB70}-\x{ABBF}",
    r"\x{FB00}-\x{FB06}\x{FB13}-\x{FB17}\x{FF21}-\x{FF3A}\x{FF41}-\x{FF5A}\x{10400}-\x{1044F}",
    r"\x{104B0}-\x{104D3}\x{104D8}-\x{104FB}\x{10C80}-\x{10CB2}\x{10CC0}-\x{10CF2}\x{118A0}-\x{118DF}",
    r"\x{1E900}-\x{1E943}",
    r"]+",
);
/// llama.cpp's rules for files that name none.
const DEFAULT: &[Rule] = &[Cut(r"[\p{P}\$\+<=>\^~\|]+"), GPT2, Cut(DIGITS), Cut("[0-9][0-9][0-9]")];
const LINES: &[Rule] = &[Cut(r"[^\n]+|\n+")];

const FAMILIES: &[Family] = &[
    Family { names: &["default"], rules: DEFAULT, traits: &[] },
    Family {
        names: &[
            "gpt-2",
            "phi-2",
            "jina-es",
            "jina-de",
            "jina-v2-es",
            "jina-v2-de",
            "jina-v1-en",
            "jina-v2-code",
            "roberta-bpe",
            "gigachat",
            "a.x-4.0",
            "mellum",
            "modern-bert",
            "jais",
            "exaone4",
            "trillion",
            "granite-docling",
        ],
        rules: &[GPT2],
        traits: &[],
    },
    Family { names: &["mpt", "olmo"], rules: &[GPT2], traits: &[Compose] },
    Family {
        names: &[
            "starcoder",
            "refact",
            "command-r",
            "smollm",
            "codeshell",
            "exaone",
            "minerva-7b",
            "mellum2",
        ],
        rules: &[Cut(DIGIT), GPT2],
        traits: &[],
    },
    Family {
        names: &[
            "llama-bpe",
            "llama3",
            "llama-v3",
            "falcon3",
            "falcon-h1",
            "pixtral",
            "midm-2.0",
            "lfm2",
            "jina-v5-nano",
        ],
        rules: &[LLAMA3],
        traits: &[IgnoreMerges, AddBos],
    },
    Family { names: &["dbrx", "smaug-bpe", "chatglm-bpe"], rules: &[LLAMA3], traits: &[] },
    Family { names: &["glm4", "glm5"], rules: &[LLAMA3], traits: &[IgnoreMerges] },
    Family {
        names: &["jais-2"],
        rules: &[Halved(&[SHORT_FORMS, LETTERS, UP_TO_3_DIGITS, SIGNS, LINE_ENDS])],
        traits: &[],
    },
    Family {
        names: &["minicpm5"],
        rules: &[Cut(UP_TO_3_DIGITS), Words(&[SHORT_FORMS, LETTERS, DIGITS, SIGNS, LINE_ENDS])],
        traits: &[IgnoreMerges],
    },
    Family { names: &["qwen2", "deepseek-r1-qwen", "f2llmv2"], rules: &[QWEN2], traits: &[Compose] },
    Family {
        names: &["stablelm2", "hunyuan", "solar-open", "grok-2", "megrez", "kormo"],
        rules: &[QWEN2],
        traits: &[],
    },
    Family { names: &["qwen35"], rules: &[QWEN35], traits: &[] },
    Family { names: &["laguna"], rules: &[Cut(r"[^\n]+|\n+"), QWEN2], traits: &[] },
    Family { names: &["ufakzeka"], rules: &[Words(&[LETTERS, DIGIT, SIGNS, LINE_ENDS])], traits: &[] },
    Family {
        names: &["seed-coder"],
        rules: &[Words(&[SHORT_FORMS, LETTERS, DIGIT, r" ?[^\s\p{L}\p{N}\r\n]+", LINE_ENDS])],
        traits: &[],
    },
    Family {
        names: &["bailingmoe", "bailingmoe2", "llada-moe"],
        rules: &[Words(&["'(?i:[sdmt]|ll|ve|re)", LETTERS, DIGIT, SIGNS, r"\s*[\r\n]"])],
        traits: &[],
    },
    Family {
        names: &["exaone-moe"],
        rules: &[Words(&[
            SHORT_FORMS,
            r"[^\r\n\p{L}\p{N}]?(?:\p{L}\p{M}*(?: \p{L}\p{M}*)*)+",
            DIGIT,
            r" ?[^\s\p{L}\p{N}]+[\r\n/]?",
            r"\s*[\r\n]",
        ])],
        traits: &[],
    },
    Family {
        names: &["deepseek-llm"],
        rules: &[
            Cut(r"[\r\n]"),
            Cut(DEEPSEEK_LETTERS),
            Cut(DEEPSEEK_SIGNS),
            Cut(r"\s+$"),
            Cut(DEEPSEEK_CHINESE),
            Cut(DIGITS),
        ],
        traits: &[],
    },
    Family {
        names: &["deepseek-coder"],
        rules: &[Cut(r"[\r\n]"), Cut(r"\s?\p{L}+"), Cut(r"\s?\p{P}+"), Cut(DEEPSEEK_CHINESE), Cut(DIGIT)],
        traits: &[],
    },
    Family {
        names: &["deepseek-v3", "hunyuan-dense", "joyai-llm", "hy_v4"],
        rules: &[Cut(UP_TO_3_DIGITS), Cut(CHINESE_AND_KANA), DEEPSEEK3],
        traits: &[],
    },
    Family {
        names: &["spark2_5"],
        rules: &[
            Cut(UP_TO_3_DIGITS),
            Cut(CHINESE_AND_KANA),
            Wrapped(&[ASCII_SIGN_AND_WORD, MARKED_LETTERS, r" ?[\p{P}\p{S}]+", r"[\r\n]"]),
            Cut(DIGIT),
        ],
        traits: &[],
    },
    Family {
        names: &["afmoe"],
        rules: &[Thousands(DIGITS, true, false), Cut(ASIAN), DEEPSEEK3],
        traits: &[],
    },
    Family {
        names: &["youtu"],
        rules: &[Cut(YOUTU_ASIAN), Words(&[SMALL_SHORT, CAPITAL_SHORT, DIGIT, SIGNS_AND_SLASHES, LINE_ENDS])],
        traits: &[IgnoreMerges],
    },
    Family {
        names: &["falcon"],
        rules: &[Cut(r"[\p{P}\$\+<=>\^~\|`]+"), GPT2, Cut("[0-9][0-9][0-9]")],
        traits: &[],
    },
    Family { names: &["poro-chat", "bloom", "gpt3-finnish"], rules: &[Cut(CLAUSES)], traits: &[] },
    Family { names: &["viking"], rules: &[Cut(CLAUSES), Cut(DIGIT)], traits: &[] },
    Family {
        names: &["tekken"],
        rules: &[Words(&[SMALL, CAPITAL, DIGIT, SIGNS_AND_SLASHES, LINE_ENDS])],
        traits: &[IgnoreMerges, AddBos],
    },
    Family { names: &["gpt-4o", "llama4", "kanana2", "talkie", "minimax-m2"], rules: &[GPT4O], traits: &[] },
    Family { names: &["granite-embed-multi-97m"], rules: &[GPT4O], traits: &[IgnoreMerges] },
    Family {
        names: &["tiny_aya", "cohere2moe"],
        rules: &[Thousands(r"\d+", true, true), GPT4O],
        traits: &[],
    },
    Family {
        names: &["kimi-k2"],
        rules: &[Words(&[r"\p{Han}+", KIMI_SMALL, KIMI_CAPITAL, UP_TO_3_DIGITS, SIGNS, LINE_ENDS])],
        traits: &[],
    },
    Family { names: &["superbpe"], rules: &[Cut(DIGITS), Thousands(r"\d+", false, false)], traits: &[] },
    Family {
        names: &["chameleon"],
        rules: &[
            Cut("<sentinel:[0-9]+>"),
            Cut("IMGIMG[A-I]{1,4}Z"),
            Cut(r"[\t\n]|    |  "),
            Cut(DIGIT),
            Cut(r"[\p{P}!-/:-@\[-`{-~]"),
            GPT2,
        ],
        traits: &[AddBos],
    },
    Family { names: &["gemma4", "granite-embed-multi-311m"], rules: LINES, traits: &[Metaspace, AddBos] },
    Family { names: &["sarvam-moe"], rules: LINES, traits: &[Metaspace] },
];

/// The rules named `pre`, or an error that lists the names hob knows.
pub(crate) fn rules(pre: &str) -> Result<Rules> {
    let Some(family) = FAMILIES.iter().find(|family| family.names.contains(&pre)) else {
        let supported: Vec<_> = FAMILIES.iter().flat_map(|family| family.names).copied().collect();
        return Err(TextError::UnsupportedPre { found: shorten(pre), supported: supported.join(", ") });
    };
    let steps: Result<Vec<Step>> = family.rules.iter().map(step).collect();
    let has = |one: Trait| family.traits.contains(&one);
    Ok(Rules {
        normalizer: has(Compose).then(|| NFC.into()),
        splitter: Splitter::new(steps?),
        ignore_merges: has(IgnoreMerges),
        add_bos: has(AddBos),
        metaspace: has(Metaspace),
    })
}

fn step(rule: &Rule) -> Result<Step> {
    match rule {
        Words(alternatives) => Step::new(alternatives, Tail::Spare { lines: true }),
        Wrapped(alternatives) => Step::new(alternatives, Tail::Spare { lines: false }),
        Halved(alternatives) => Step::new(alternatives, Tail::Halving),
        Cut(expression) => Step::new(&[expression], Tail::Whole),
        Thousands(run, alone, closed) => Step::thousands(run, *alone, *closed),
    }
}

/// GPT-2's splitting, for the component `ByteLevel` of a tokenizer.json.
pub(crate) fn gpt2_step() -> Result<Step> {
    step(&GPT2)
}

/// At most 40 characters of an untrusted name, without control characters.
pub(crate) fn shorten(name: &str) -> String {
    let mut short: String = name.chars().filter(|c| !c.is_control()).take(40).collect();
    if short.len() < name.len() {
        short.push('…');
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_name_has_one_family_whose_rules_compile() {
        let mut names: Vec<_> = FAMILIES.iter().flat_map(|family| family.names).collect();
        for name in &names {
            rules(name).unwrap_or_else(|error| panic!("{name}: {error}"));
        }
        let all = names.len();
        assert!(all >= 90, "{all}");
        names.sort();
        names.dedup();
        assert_eq!(names.len(), all, "a name stands in two families");
    }

    /// Words that tell families apart, each split by hand.
    #[test]
    fn families_split_as_published() {
        let cases: &[(&str, &str, &[&str])] = &[
            ("gpt-2", "it's 12345 HelloWorld!", &["it", "'s", " 12345", " HelloWorld", "!"]),
            ("starcoder", "x 123", &["x", " ", "1", "2", "3"]),
            ("llama-bpe", "IT'S 12345x", &["IT", "'S", " ", "123", "45", "x"]),
            ("qwen2", "a 12", &["a", " ", "1", "2"]),
            ("qwen35", "हिन्दी 1", &["हिन्दी", " ", "1"]),
            ("gpt-4o", "HelloWorld DON'T /a", &["Hello", "World", " DON'T", " /", "a"]),
            ("tekken", "HelloWorld's 12", &["Hello", "World", "'s", " ", "1", "2"]),
            ("deepseek-v3", "1234 日本x .hello", &["123", "4", " ", "日本", "x", " .", "hello"]),
            ("deepseek-llm", "ab  cd 12 日本\n", &["ab", " ", " cd", " ", "12", " ", "日本", "\n"]),
            ("deepseek-coder", "ab 12", &["ab", " ", "1", "2"]),
            ("falcon", "ab,12345`", &["ab", ",", "123", "45", "`"]),
            ("bloom", "hello world, you", &["hello", " world", ",", " you"]),
            ("viking", "ab12.", &["ab", "1", "2", "."]),
            ("kimi-k2", "Hello日本World's", &["Hello", "日本", "World's"]),
            ("superbpe", "a 1234567 b", &["a ", "1", "234", "567", " b"]),
            ("tiny_aya", "1234567 12345a", &["1", "234", "567", " ", "123", "45", "a"]),
            ("afmoe", "12345日本", &["12", "345", "日本"]),
            ("exaone-moe", "a b c1", &["a b c", "1"]),
            ("chameleon", "IMGIMGABZ a", &["IMGIMGABZ", " a"]),
            ("minicpm5", "a 12345", &["a", " ", "123", "45"]),
            ("ufakzeka", "it's", &["it", "'s"]),
            ("ufakzeka", "it'sx", &["it", "'sx"]),
            ("gemma4", "a b\n\nc", &["a b", "\n\n", "c"]),
            ("default", "ab,  12345", &["ab", ",", " ", " ", "123", "45"]),
        ];
        for (name, text, expected) in cases {
            let mut found = Vec::new();
            let push = &mut |piece| {
                found.push(piece);
                Ok::<(), ()>(())
            };
            rules(name).unwrap().splitter.split(text, push).unwrap();
            assert_eq!(&found, expected, "{name} {text:?}");
        }
    }
}
