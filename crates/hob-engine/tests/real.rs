//! Real weights against another engine: what SmolLM2 says greedily, as llama.cpp (0c1e57098, one thread) said it.
//!
//! Runs where HOB_TEST_MODELS names a folder with `SmolLM2-135M-Instruct.Q4_1.gguf`; `hob pull` fetches it.

use std::path::Path;
use std::sync::Arc;

use hob_engine::{Cancel, Engine, Finish, Prompt, Request, Runtime, RuntimeConfig, Sampling};
use hob_files::ModelFile;
use hob_model::Layout;

/// Prompt, number of greedy tokens, and their text. The second stops where the engines part: of the next token's leading
/// candidates, exact activations put " the" 0.12 above " human", int8 ones 0.07; llama.cpp takes the other. A third prompt
/// tried, "The capital of France is", parts at the sixth token, likewise by 0.03 and 0.22.
const CONTINUATIONS: [(&str, usize, &str); 2] = [
    (
        "Water boils at",
        24,
        " 100°C, which is a perfect Celsius.\n\nThe ratio of the heat released to the heat",
    ),
    (
        "The first president of the United States was",
        17,
        " John F. Kennedy. He was a former American astronaut who became a leading advocate for",
    ),
];

#[test]
fn smollm2_continues_as_in_llama_cpp() {
    let Some(folder) = std::env::var_os("HOB_TEST_MODELS") else {
        println!("skipped: HOB_TEST_MODELS is not set");
        return;
    };
    let path = Path::new(&folder).join("SmolLM2-135M-Instruct.Q4_1.gguf");
    if !path.exists() {
        println!("skipped: {} is not there", path.display());
        return;
    }
    let file = Arc::new(ModelFile::open(&path).unwrap());
    for threads in [1, 2] {
        let runtime =
            Runtime::new(&RuntimeConfig { threads: Some(threads), exact: false, ..RuntimeConfig::default() })
                .unwrap();
        let mut engine = Engine::load(&runtime, Arc::clone(&file), Layout::new(256), &mut |_, _| ()).unwrap();
        for (prompt, max_tokens, want) in CONTINUATIONS {
            let mut session = engine.session().unwrap();
            let request =
                Request { sampling: Sampling::greedy(), max_tokens, ..Request::new(Prompt::text(prompt)) };
            let mut streamed = String::new();
            let outcome = engine
                .generate(&mut session, &request, &Cancel::new(), &mut |t| streamed.push_str(t))
                .unwrap();
            assert_eq!(outcome.text, want, "{prompt} on {threads} threads");
            assert_eq!(streamed, want);
            assert_eq!(outcome.finish, Finish::Length);
        }
    }
}
