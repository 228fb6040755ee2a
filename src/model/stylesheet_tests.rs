use proptest::prelude::*;

use super::*;

/// The numbers of the streams that a selector means, counted from 1. Streams have the classes that are their name's letters.
fn chosen(selector: &str, streams: &str) -> Vec<usize> {
    let sheet = Stylesheet::parse(&format!("{selector} {{ width: 1px }}")).expect("a sheet");
    let classes: Vec<Vec<String>> =
        streams.split(' ').map(|name| name.chars().map(|c| c.to_string()).collect()).collect();
    let siblings: Vec<Sibling<'_>> = classes.iter().map(|classes| Sibling { classes }).collect();
    (0..siblings.len()).filter(|n| !sheet.of(&siblings, *n).is_empty()).map(|n| n + 1).collect()
}

#[test]
fn selectors_choose_streams_by_class_place_and_siblings() {
    for (selector, expected) in [
        ("stream", vec![1, 2, 3, 4, 5]),
        (".a", vec![1, 3]),
        ("stream.a.b", vec![3]),
        (":first-child", vec![1]),
        ("stream:last-child", vec![5]),
        (":nth-child(2)", vec![2]),
        (":nth-child(odd)", vec![1, 3, 5]),
        (":nth-child(even)", vec![2, 4]),
        (":nth-child(2n+3)", vec![3, 5]),
        (":nth-child(-n+2)", vec![1, 2]),
        (":nth-last-child(-n+2)", vec![4, 5]),
        (":nth-last-child(2)", vec![4]),
        (".a + stream", vec![2, 4]),
        (".b ~ .c", vec![4, 5]),
        (".a + .b + .a", vec![3]),
        (".a ~ .b + .c", vec![4]),
        (".c, :first-child", vec![1, 4, 5]),
        (".nobody", vec![]),
    ] {
        assert_eq!(chosen(selector, "a b ab c bc"), expected, "{selector}");
    }
}

#[test]
fn the_stronger_selector_counts_then_the_later_one_and_important_ones_before_all() {
    let sheet = "stream { width: 1px !important } .a { width: 2px; height: 5px } stream { width: 3px; height: 4px }";
    let sheet = Stylesheet::parse(sheet).expect("a sheet");
    let classes = ["a".to_owned()];
    let properties = sheet.of(&[Sibling { classes: &classes }], 0);
    let last = |wanted: fn(&Property) -> bool| properties.iter().rfind(|p| wanted(p)).copied();
    assert_eq!(last(|p| matches!(p, Property::Width(_))), Some(Property::Width(Length::Pixels(1.0))));
    assert_eq!(last(|p| matches!(p, Property::Height(_))), Some(Property::Height(Length::Pixels(5.0))));
}

#[test]
fn what_cannot_be_used_is_refused_with_its_place_and_the_reason() {
    for (sheet, line, column, what) in [
        ("stream { width: 50% }\n  div { width: 1px }", 2, 3, "called stream"),
        ("archive > stream { width: 1px }", 1, 1, "called stream"),
        ("stream > stream { width: 1px }", 1, 8, "only + and ~"),
        ("stream stream { width: 1px }", 1, 7, "only + and ~"),
        ("* { width: 1px }", 1, 1, "nothing else"),
        ("#a { width: 1px }", 1, 1, "nothing else"),
        ("stream[a] { width: 1px }", 1, 7, "square brackets"),
        ("stream::before { width: 1px }", 1, 7, "nothing else"),
        ("stream:hover { width: 1px }", 1, 7, "no others"),
        ("stream:nth-child(2 of .a) { width: 1px }", 1, 7, "no others"),
        ("@media print { stream { width: 1px } }", 1, 1, "only rules"),
        ("stream { color: red }", 1, 10, "color cannot be used"),
        ("stream {\n width: 3em }", 2, 9, "in px or per cent"),
        ("stream { width: 1px 2px }", 1, 10, "one value"),
        ("stream { width: none }", 1, 17, "auto"),
        ("stream { position: fixed }", 1, 20, "relative, absolute"),
        ("stream { z-index: 1.5 }", 1, 10, "whole number"),
        ("stream { margin: 1px 2px 3px 4px 5px }", 1, 10, "one to four"),
        ("stream { width: 1000000px }", 1, 17, "too large"),
        ("stream { width: calc(1px + 2px) }", 1, 17, "in px or per cent"),
        ("stream { width: 1px", 1, 8, "not closed"),
        ("stream { width: 1px } }", 1, 23, "closes nothing"),
        ("/* a\n */ /* b", 2, 5, "no end"),
        ("stream { width: calc( /* ) */ 1px }", 1, 35, "closes nothing"),
        ("stream { width: \"1px\" }", 1, 17, "quotes"),
        ("stream { stream { width: 1px } }", 1, 10, ""),
        ("((((((((((", 1, 4, "too deep"),
        ("stream:nth-child(+-:width) { width: 1px }", 1, 19, "belongs to nothing"),
        ("stream { width: -; }", 1, 17, "belongs to nothing"),
        ("stream { margin: +- 1px }", 1, 19, "belongs to nothing"),
        ("stream { width: $a }", 1, 17, "this character"),
        (".-\n { width: 1px }", 1, 2, "belongs to nothing"),
    ] {
        let problem = Stylesheet::parse(sheet).expect_err(sheet);
        assert_eq!((problem.line, problem.column), (line, column), "{sheet}: {problem}");
        assert!(problem.what.contains(what), "{sheet}: {problem}");
    }
}

#[test]
fn signs_are_those_of_numbers_names_and_places() {
    let sheet = "stream{margin:-1px}.a-b{left:-.5%}stream:nth-child(2n - 1){top:0}stream:nth-child(-n+3){top: -2px}";
    assert!(Stylesheet::parse(sheet).is_ok(), "{:?}", Stylesheet::parse(sheet));
}

proptest! {
    #[test]
    fn no_text_makes_it_panic(text in "[ -~\\n]{0,80}") {
        drop(Stylesheet::parse(&text));
    }

    #[test]
    fn no_sheet_of_its_own_words_makes_it_panic(
        words in proptest::collection::vec(
            prop::sample::select(vec![
                "stream", ".a", ":nth-child(", "2n+1", ")", "{", "}", "width", ":", "50%", "1px", ";", "+", "~", ">", "*",
                "@media", "!important", "margin", "auto", "/*", "*/", "\"", "\\", "#", "-", "99999999999",
            ]),
            0..40,
        )
    ) {
        drop(Stylesheet::parse(&words.join(" ")));
        drop(Stylesheet::parse(&words.concat()));
    }
}
