//! The issuance line holds by construction: what skips a stage does not compile.

#[test]
fn skipping_a_stage_does_not_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("tests/compile_fail/whole_line.rs");
    cases.compile_fail("tests/compile_fail/sign_unlinted.rs");
    cases.compile_fail("tests/compile_fail/sign_unintended.rs");
    cases.compile_fail("tests/compile_fail/release_unrecorded.rs");
    cases.compile_fail("tests/compile_fail/make_grant.rs");
    cases.compile_fail("tests/compile_fail/make_prepared.rs");
    cases.compile_fail("tests/compile_fail/record_twice.rs");
}
