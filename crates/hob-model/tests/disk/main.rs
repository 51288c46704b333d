//! The disk tier under everything that may happen to it: one test binary, so that it can start itself as a second
//! process. Whatever happens, a lookup finds bytes identical to what was stored, or nothing.

mod support;

mod budgets;
mod chains;
mod damage;
mod faults;
mod folders;
mod processes;
mod property;
