//! The largest logits, draws, tickets, and embeddings of what was chosen, against the oracle.

mod common;

use std::sync::Arc;

use common::{TIERS, buffer, contents, distance, gpu, reference, values};
use hob_compute::tickets::KEPT;
use hob_compute::{
    Compute, ComputeError, Draw, Embed, Pick, Picked, Ticket, Token, Weight, WeightKind, WeightSpec,
};
use hob_quant::Format;

fn picked(dev: &mut dyn Compute, ticket: Ticket) -> Picked {
    let mut out = Picked::default();
    dev.picked(ticket, &mut out).expect("a fresh ticket");
    out
}

fn pick(dev: &mut dyn Compute, data: &[f32], rows: usize, k: usize, draws: &[Draw]) -> Picked {
    let logits = buffer(dev, rows, data.len() / rows, data);
    dev.pick(&Pick { logits, rows, k, draws }).expect("a pick");
    let ticket = dev.submit().expect("a ticket");
    dev.free(logits).expect("it was allocated");
    picked(dev, ticket)
}

fn agree(what: &str, expected: &Picked, found: &Picked) {
    assert_eq!((expected.k, &expected.tokens), (found.k, &found.tokens), "{what}");
    // -0 equals 0.
    assert_eq!(expected.logits, found.logits, "{what}");
    assert_eq!(expected.chosen, found.chosen, "{what}");
    for (e, f) in expected.log_sum_exp.iter().zip(&found.log_sum_exp) {
        assert!(e == f || (e - f).abs() <= 1e-5 * e.abs().max(1.0), "{what}: {e}, found {f}");
    }
}

#[test]
fn picks_equal_the_oracle_for_any_rows_vocabulary_and_k() {
    for off in ["", "subgroups,f16,dot,coop"] {
        let Some(mut dev) = gpu(false, off) else { return };
        let mut oracle = reference(false);
        for (rows, vocab) in [(1, 1), (2, 7), (40, 300), (1, 2048), (3, 2049), (1, 70_001)] {
            let data: Vec<f32> = values(vocab as u64, rows * vocab).iter().map(|x| x * 8.0).collect();
            for k in [1, 2, 40, 256, vocab].into_iter().filter(|&k| k <= vocab.min(256)) {
                let what = format!("{k} of {rows} x {vocab}, without '{off}'");
                agree(&what, &pick(&mut oracle, &data, rows, k, &[]), &pick(&mut dev, &data, rows, k, &[]));
            }
        }
    }
}

#[test]
fn more_rows_than_one_slab_holds() {
    let Some(mut dev) = gpu(false, "") else { return };
    let (rows, vocab) = (70, 20_000);
    let data = values(3, rows * vocab);
    let found = pick(&mut dev, &data, rows, 256, &[]);
    for r in [0, 50, 51, 69] {
        let top = hob_compute::reference::rows::top_k(&data[r * vocab..(r + 1) * vocab], 256);
        let ids: Vec<u32> = top.iter().map(|t| t.1).collect();
        assert_eq!(found.tokens[r * 256..(r + 1) * 256], ids, "row {r}");
    }
}

#[test]
fn equal_logits_go_by_id_and_what_is_no_number_comes_last() {
    let (nan, inf) = (f32::NAN, f32::INFINITY);
    let mut many = vec![0.25f32; 5000];
    many[4999] = 0.5;
    many[7] = nan;
    let mut infinite = many.clone();
    infinite[4000] = inf;
    infinite[4100] = inf;
    let cases: [&[f32]; 8] = [
        &many,
        &infinite,
        &[nan; 9],
        &[-inf; 9],
        &[inf; 9],
        &[nan, 1.0, -inf, 2.0, nan, 2.0, -0.0, 0.0, -0.0],
        &[f32::MAX, f32::MIN, f32::MAX, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0],
        &[-3e38, -2e38, nan, -inf, -1e-40, 1e-40, 0.0, -0.0, 1.0],
    ];
    {
        let off = "";
        let Some(mut dev) = gpu(false, off) else { return };
        for (i, case) in cases.iter().enumerate() {
            for k in [1, 3, 9] {
                let found = pick(&mut dev, case, 1, k, &[]);
                agree(&format!("case {i}, k {k}"), &pick(&mut reference(false), case, 1, k, &[]), &found);
            }
        }
    }
}

/// Draws of every kind.
fn draws(count: usize, k: usize) -> Vec<Draw> {
    let u = values(11, 8 * count);
    let unit = |i: usize| f64::from(u[i].abs().min(0.999_999));
    let share = |i: usize| if u[i] > 0.3 { 1.0 } else { 0.05 + 0.9 * u[i].abs().min(1.0) };
    (0..count)
        .map(|r| Draw {
            temperature: if r % 7 == 0 { 0.0 } else { 0.1 + u[8 * r].abs() },
            top_k: if r % 3 == 0 { k } else { 1 + (unit(8 * r + 1) * k as f64) as usize }.min(k),
            typical_p: share(8 * r + 2),
            top_p: share(8 * r + 3),
            min_p: if u[8 * r + 4] > 0.2 { 0.0 } else { u[8 * r + 4].abs().min(1.0) * 0.3 },
            u: unit(8 * r + 5),
        })
        .collect()
}

#[test]
fn draws_equal_the_oracles() {
    {
        let off = "";
        let Some(mut dev) = gpu(false, off) else { return };
        for (vocab, k) in [(3, 3), (300, 2), (300, 40), (5000, 256)] {
            let rows = 60;
            let data: Vec<f32> = values(k as u64, rows * vocab).iter().map(|x| x * 5.0).collect();
            let draws = draws(rows, k);
            let (expected, found) =
                (pick(&mut reference(false), &data, rows, k, &draws), pick(&mut dev, &data, rows, k, &draws));
            agree(&format!("{k} of {vocab}, without '{off}'"), &expected, &found);
        }
        // Masked tokens, equal tokens, and a largest one that is no number.
        let (inf, max) = (f32::INFINITY, 1.0 - f64::EPSILON);
        for row in [[1.0, -inf, -inf, 1.0], [-inf; 4], [inf, 0.0, inf, 0.0], [2.0; 4]] {
            for u in [0.0, 0.3, 0.7, max] {
                for typical_p in [1.0, 0.4] {
                    let draw = Draw { temperature: 0.8, top_k: 4, typical_p, top_p: 0.9, min_p: 0.1, u };
                    let expected = pick(&mut reference(false), &row, 1, 4, &[draw]);
                    agree(&format!("{row:?} {draw:?}"), &expected, &pick(&mut dev, &row, 1, 4, &[draw]));
                }
            }
        }
    }
}

#[test]
fn each_ticket_gives_its_own_results_in_any_order() {
    let Some(mut dev) = gpu(false, "") else { return };
    let rows: Vec<Vec<f32>> = (0..KEPT as u64 + 3).map(|seed| values(seed + 1, 3000)).collect();
    let mut tickets = Vec::new();
    for row in &rows {
        // Two picks, the second of two rows.
        let logits = buffer(&mut dev, 2, 1500, row);
        dev.pick(&Pick { logits, rows: 1, k: 3, draws: &[] }).unwrap();
        dev.pick(&Pick { logits, rows: 2, k: 3, draws: &[] }).unwrap();
        let other = dev.pick(&Pick { logits, rows: 1, k: 4, draws: &[] });
        assert!(matches!(other, Err(ComputeError::Shape { .. })));
        tickets.push(dev.submit().unwrap());
        dev.free(logits).unwrap();
    }
    // The oldest were dropped.
    for &ticket in &tickets[..3] {
        let stale = dev.picked(ticket, &mut Picked::default());
        assert!(matches!(stale, Err(ComputeError::Handle { .. })));
    }
    for i in (3..rows.len()).rev() {
        let found = picked(&mut dev, tickets[i]);
        let top = |r: usize| hob_compute::reference::rows::top_k(&rows[i][1500 * r..1500 * (r + 1)], 3);
        let ids: Vec<u32> = [0, 0, 1].into_iter().flat_map(top).map(|t| t.1).collect();
        assert_eq!((found.k, found.tokens), (3, ids), "ticket {i}");
        assert!(dev.picked(tickets[i], &mut Picked::default()).is_err(), "read twice");
    }
    let nothing = dev.submit().unwrap();
    assert!(picked(&mut dev, nothing).chosen.is_empty());
}

#[test]
fn what_cannot_be_picked_is_refused() {
    let Some(mut dev) = gpu(false, "") else { return };
    let logits = buffer(&mut dev, 2, 300, &values(1, 600));
    for (rows, k) in [(3, 1), (1, 0), (1, 257)] {
        let found = dev.pick(&Pick { logits, rows, k, draws: &[] });
        assert!(matches!(found, Err(ComputeError::Shape { .. })), "{rows} rows, k {k}");
    }
    let draws = [Draw::GREEDY; 2];
    assert!(dev.pick(&Pick { logits, rows: 1, k: 1, draws: &draws }).is_err());
    assert!(dev.picked(Ticket(99), &mut Picked::default()).is_err());
}

fn table(dev: &mut dyn Compute, format: Format, rows: usize, cols: usize) -> Weight {
    let values = values(9, rows * cols);
    let mut bytes = Vec::new();
    for row in values.chunks(cols) {
        let mut packed = vec![0u8; format.row_bytes(cols).unwrap()];
        hob_quant::encode_row(format, row, &mut packed).unwrap();
        bytes.extend(packed);
    }
    let spec = WeightSpec { name: "table".into(), kind: WeightKind::Table, format, rows, cols };
    dev.load(&spec, Arc::new(bytes)).expect("a table loads")
}

#[test]
fn embeddings_of_known_and_of_chosen_tokens_equal_the_oracles() {
    use Token::{Device, Host};
    for off in TIERS {
        let Some(mut dev) = gpu(false, off) else { return };
        for (format, cols) in [
            (Format::F32, 37),
            (Format::F16, 40),
            (Format::Q4_0, 96),
            (Format::Q8_0, 64),
            (Format::Q5_0, 128),
        ] {
            let vocab = 50;
            let mut results = Vec::new();
            for dev in [&mut reference(false) as &mut dyn Compute, &mut dev] {
                let table = table(dev, format, vocab, cols);
                let logits = buffer(dev, 3, vocab, &values(4, 3 * vocab));
                let out = dev.alloc(6, cols).unwrap();
                let draw = Draw { temperature: 1.0, top_k: 5, u: 0.77, ..Draw::GREEDY };
                dev.pick(&Pick { logits, rows: 1, k: 5, draws: &[] }).unwrap();
                dev.pick(&Pick { logits, rows: 3, k: 5, draws: &[draw, draw, Draw::GREEDY] }).unwrap();
                let ticket = dev.submit().unwrap();
                let tokens = [Device(2), Host(49), Device(0), Host(0), Device(1), Host(7)];
                dev.embed(&Embed { table, tokens: &tokens, out, scale: 1.5 }).unwrap();
                results.push(contents(dev, out, 6 * cols));
                picked(dev, ticket);
                for bad in [Host(50), Host(u32::MAX), Device(3)] {
                    assert!(matches!(
                        dev.embed(&Embed { table, tokens: &[bad], out, scale: 1.0 }),
                        Err(ComputeError::Shape { .. })
                    ));
                }
                dev.unload(table).unwrap();
            }
            assert!(distance(&results[0], &results[1]) < 1e-6, "{format}, without '{off}'");
        }
    }
}
