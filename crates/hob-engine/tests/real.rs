//! Real weights against another engine: what SmolLM2 says greedily, as llama.cpp (0c1e57098, one thread) said it.
//!
//! Runs where HOB_TEST_MODELS names a folder with `SmolLM2-135M-Instruct.Q4_1.gguf`; `hob pull` fetches it.

use std::path::Path;
use std::sync::Arc;

use hob_engine::{Cancel, Engine, Finish, Prompt, Request, Runtime, RuntimeConfig, Sampling};
use hob_files::ModelFile;
use hob_model::Layout;

/// Prompt and 24 greedy tokens. A third prompt tried, "The capital of France is", parts from llama.cpp at the sixth token:
/// there hob's leading candidates differ by 0.03 with int8 activations and by 0.22, in the same order, with exact ones.
const CONTINUATIONS: [(&str, &str); 2] = [
    ("Water boils at", " 100°C, which is a perfect Celsius.\n\nThe ratio of the heat released to the heat"),
    (
        "The first president of the United States was",
        " John F. Kennedy. He was a former American astronaut who became a leading advocate for human space \
         exploration. He was also",
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
        let runtime = Runtime::new(&RuntimeConfig { threads: Some(threads), exact: false }).unwrap();
        let mut engine = Engine::load(&runtime, Arc::clone(&file), Layout::new(256), &mut |_, _| ()).unwrap();
        for (prompt, want) in CONTINUATIONS {
            let mut session = engine.session().unwrap();
            let request = Request {
                sampling: Sampling::greedy(),
                max_tokens: 24,
                ..Request::new(Prompt::text(prompt))
            };
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
