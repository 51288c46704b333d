//! `hf:OWNER/REPOSITORY[@REVISION][:FILE]` as a name: what may stand in it, and which of a repository's files it
//! means. Contacts nothing.

use std::collections::BTreeMap;
use std::fmt;

use crate::foreign::{is_gguf, shard};
use crate::name::{is_file_name, shown};
use crate::{HubError, SourceError};

/// A model by its place on the Hugging Face hub.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HubName {
    /// `owner/name`.
    pub repo: String,
    /// Branch, tag or commit; `None` is `main`.
    pub revision: Option<String>,
    /// A path in the repository, a file's name, or a type such as `Q4_K_M`.
    pub file: Option<String>,
}

impl HubName {
    /// `None` unless `text` begins with `hf:`.
    pub fn parse(text: &str) -> Option<Result<Self, HubError>> {
        let rest = text.strip_prefix("hf:")?;
        Some(Self::parse_rest(rest).map_err(|why| HubError::BadHubName { name: shown(text, 120), why }))
    }

    fn parse_rest(text: &str) -> Result<Self, &'static str> {
        let (place, file) = text.split_once(':').map_or((text, None), |(place, file)| (place, Some(file)));
        let (path, revision) = place.split_once('@').map_or((place, None), |(p, r)| (p, Some(r)));
        let mut pieces = path.splitn(3, '/');
        let (Some(owner), Some(name)) = (pieces.next(), pieces.next()) else {
            return Err("it has no owner and repository");
        };
        // The names of the hub's cache put the file behind a slash.
        let file = file.or(pieces.next());
        if !is_file_name(owner) || !is_file_name(name) {
            return Err("owner and repository are made of letters, digits and . _ -");
        }
        let is_path = |path: &str| path.len() <= 400 && path.split('/').all(is_file_name);
        if !file.is_none_or(is_path) {
            return Err("the file is made of letters, digits and . _ - + /");
        }
        if !revision.is_none_or(is_path) {
            return Err("the revision is made of letters, digits and . _ - + /");
        }
        let owned = |text: Option<&str>| text.map(str::to_owned);
        Ok(Self { repo: format!("{owner}/{name}"), revision: owned(revision), file: owned(file) })
    }

    /// The revision to ask for.
    pub(crate) fn revision(&self) -> &str {
        self.revision.as_deref().unwrap_or("main")
    }
}

impl fmt::Display for HubName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "hf:{}", self.repo)?;
        if let Some(revision) = &self.revision {
            write!(f, "@{revision}")?;
        }
        self.file.as_ref().map_or(Ok(()), |file| write!(f, ":{file}"))
    }
}

/// Which of a repository's files make the model.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Choice {
    /// All parts, the first one first.
    Gguf(Vec<String>),
    /// config.json first.
    Folder(Vec<String>),
}

/// Types in the order in which one is taken when none is named: Q4_K_M, then what is nearest to it in size and
/// quality, larger ones before smaller ones.
const TYPES: &[&str] = &[
    "Q4_K_M", "Q4_K_S", "Q4_K_L", "Q4_K", "IQ4_NL", "IQ4_XS", "Q4_1", "Q4_0", "MXFP4", "Q5_K_M", "Q5_K_S",
    "Q5_K", "Q5_1", "Q5_0", "Q6_K", "Q8_0", "Q3_K_L", "Q3_K_M", "IQ3_M", "IQ3_S", "Q3_K_S", "IQ3_XS",
    "IQ3_XXS", "BF16", "F16", "Q2_K", "IQ2_M", "F32",
];

/// What stands beside config.json and the weights in a folder of safetensors.
const SIDE_FILES: &[&str] = &[
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "generation_config.json",
    "chat_template.jinja",
    "model.safetensors.index.json",
];

/// The files that `wanted` means among `paths`, or the best default.
pub(crate) fn choose(repo: &str, paths: &[String], wanted: Option<&str>) -> Result<Choice, SourceError> {
    let models = gguf_models(paths);
    let folder = safetensors(paths);
    let picked = match wanted {
        Some(wanted) if folder.as_ref().is_some_and(|files| files.iter().any(|file| file == wanted)) => None,
        wanted => Some(pick(models.keys().map(String::as_str), wanted)),
    };
    match (picked, folder) {
        (Some(Some(first)), _) => Ok(Choice::Gguf(models[first].clone())),
        (None, Some(files)) => Ok(Choice::Folder(files)),
        (Some(None), Some(files)) if wanted.is_none() && models.is_empty() => Ok(Choice::Folder(files)),
        _ if models.is_empty() && wanted.is_none() => Err(SourceError::NoModel { repo: repo.to_owned() }),
        _ => Err(SourceError::NoChoice {
            repo: repo.to_owned(),
            wanted: wanted.map(str::to_owned),
            choices: models.into_keys().collect(),
        }),
    }
}

/// The one of `paths` that `wanted` means: a path, a file's name or a type; without it the best type, or the only one.
pub(crate) fn pick<'a>(
    paths: impl Iterator<Item = &'a str> + Clone,
    wanted: Option<&str>,
) -> Option<&'a str> {
    let only =
        |mut hits: Box<dyn Iterator<Item = &'a str> + '_>| hits.next().filter(|_| hits.next().is_none());
    let of_type =
        |path: &str, kind: &str| path.split(['/', '-', '.']).any(|piece| piece.eq_ignore_ascii_case(kind));
    let Some(wanted) = wanted else {
        let best = TYPES.iter().find_map(|kind| paths.clone().filter(|path| of_type(path, kind)).min());
        return best.or_else(|| only(Box::new(paths)));
    };
    let name = |path: &'a str| path.rsplit('/').next().unwrap_or(path);
    paths
        .clone()
        .find(|path| *path == wanted)
        .or_else(|| only(Box::new(paths.clone().filter(|path| name(path) == wanted))))
        .or_else(|| only(Box::new(paths.filter(|path| of_type(path, wanted)))))
}

/// GGUF models by the path of their (first) file, with all parts. Projectors, importance matrices, models with
/// missing parts and names that could not be stored are left out.
fn gguf_models(paths: &[String]) -> BTreeMap<String, Vec<String>> {
    let mut models: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let name = |path: &str| path.rsplit('/').next().unwrap_or_default().to_ascii_lowercase();
    let fit = |path: &&String| {
        let name = name(path);
        is_gguf(path)
            && path.split('/').all(is_file_name)
            && !name.starts_with("mmproj")
            && !name.contains("imatrix")
    };
    let mut sorted: Vec<&String> = paths.iter().filter(fit).collect();
    sorted.sort();
    for path in sorted {
        match shard(path) {
            None | Some((_, 1)) => drop(models.insert(path.clone(), vec![path.clone()])),
            Some((base, _)) => {
                let first =
                    models.iter_mut().find(|(key, _)| shard(key).is_some_and(|(other, _)| other == base));
                if let Some((_, parts)) = first {
                    parts.push(path.clone());
                }
            }
        }
    }
    let whole = |path: &str, parts: &[String]| {
        let count = path.rsplit_once("-of-").and_then(|(_, rest)| rest.get(..5)?.parse::<usize>().ok());
        shard(path).is_none() || count == Some(parts.len())
    };
    models.retain(|path, parts| whole(path, parts));
    models
}

/// The files of a folder model at the top of a repository.
fn safetensors(paths: &[String]) -> Option<Vec<String>> {
    let top = || paths.iter().filter(|path| is_file_name(path));
    let mut files: Vec<String> = top().filter(|path| *path == "config.json").cloned().collect();
    if files.is_empty() {
        return None;
    }
    let weights: Vec<&String> = top().filter(|path| path.ends_with(".safetensors")).collect();
    // Some repositories hold the same weights once more under another name.
    let model = |path: &&&String| path.starts_with("model");
    let named = weights.iter().any(|path| model(&path));
    let weights: Vec<String> =
        weights.iter().filter(|path| !named || model(path)).map(|path| (*path).clone()).collect();
    files.extend(top().filter(|path| SIDE_FILES.contains(&path.as_str())).cloned());
    files.extend(weights.iter().cloned());
    (!weights.is_empty()).then_some(files)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn paths(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    #[test]
    fn names_in_all_their_forms() {
        let parse = |text: &str| HubName::parse(text).unwrap().unwrap();
        let full = parse("hf:o/r@refs/pr/3:sub/File.Q4_0.gguf");
        assert_eq!(
            (full.repo.as_str(), full.revision(), full.file.as_deref()),
            ("o/r", "refs/pr/3", Some("sub/File.Q4_0.gguf"))
        );
        assert_eq!(full.to_string(), "hf:o/r@refs/pr/3:sub/File.Q4_0.gguf");
        assert_eq!(parse("hf:o/r/sub/f.gguf").file.as_deref(), Some("sub/f.gguf"));
        assert_eq!(parse("hf:o/r").revision(), "main");
        assert!(HubName::parse("o/r").is_none());
        for bad in [
            "hf:",
            "hf:o",
            "hf:o/",
            "hf:/r",
            "hf:../r",
            "hf:o/..",
            "hf:o/r:",
            "hf:o/r@",
            "hf:o/r:../x",
            "hf:o/r:a//b",
            "hf:o/r:/a",
            "hf:o/r:a b",
            "hf:o/r\0",
            "hf:o/con",
        ] {
            let error = HubName::parse(bad).unwrap().unwrap_err().to_string();
            assert!(error.contains("OWNER/REPOSITORY"), "{bad}: {error}");
        }
    }

    #[test]
    fn the_default_is_q4_k_m_then_its_neighbours() {
        let choose = |names: &[&str], wanted| choose("o/r", &paths(names), wanted);
        let one = |path: &str| Choice::Gguf(vec![path.to_owned()]);
        let all = &[
            "m.Q8_0.gguf",
            "m-q4_k_m.gguf",
            "m.F16.gguf",
            "mmproj-m.Q4_K_M.gguf",
            "m.imatrix.gguf",
            "README.md",
        ];
        assert_eq!(choose(all, None).unwrap(), one("m-q4_k_m.gguf"));
        assert_eq!(choose(all, Some("q8_0")).unwrap(), one("m.Q8_0.gguf"));
        assert_eq!(choose(all, Some("m.F16.gguf")).unwrap(), one("m.F16.gguf"));
        assert_eq!(choose(&["m.Q8_0.gguf", "m.Q6_K.gguf"], None).unwrap(), one("m.Q6_K.gguf"));
        assert_eq!(choose(&["strange.gguf"], None).unwrap(), one("strange.gguf"));
        let error = choose(all, Some("Q3_K")).unwrap_err().to_string();
        assert!(
            error.contains("Q3_K") && error.contains("m-q4_k_m.gguf, m.F16.gguf, m.Q8_0.gguf"),
            "{error}"
        );
        assert!(
            choose(&["a.gguf", "b.gguf"], None)
                .unwrap_err()
                .to_string()
                .contains("name one of: a.gguf, b.gguf")
        );
        assert!(choose(&["README.md"], None).unwrap_err().to_string().contains("holds no model"));
    }

    #[test]
    fn split_models_are_whole_or_not_there() {
        let split = |n: u32| format!("Q4_K_M/m-Q4_K_M-{n:05}-of-00003.gguf");
        let mut names = vec![split(3), split(1), split(2), "m-Q8_0.gguf".to_owned()];
        assert_eq!(choose("o/r", &names, None).unwrap(), Choice::Gguf(vec![split(1), split(2), split(3)]));
        names.remove(0);
        assert_eq!(choose("o/r", &names, None).unwrap(), Choice::Gguf(vec!["m-Q8_0.gguf".to_owned()]));
    }

    #[test]
    fn safetensors_with_what_belongs_to_them() {
        let names = paths(&[
            "config.json",
            "tokenizer.json",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "consolidated.safetensors",
            "x/model.safetensors",
            "pytorch_model.bin",
        ]);
        let Choice::Folder(files) = choose("o/r", &names, None).unwrap() else { panic!("a folder") };
        assert_eq!(
            files,
            [
                "config.json",
                "tokenizer.json",
                "model-00001-of-00002.safetensors",
                "model-00002-of-00002.safetensors"
            ]
        );
    }
}
