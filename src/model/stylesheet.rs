//! The style sheets of custom layouts: the part of CSS that Vonage documents, over streams that stand beside each other.
//! What cannot be used is refused with its place and the reason, before it can harm an archive.

use std::panic::catch_unwind;

use raffia::ast::{
    CombinatorKind, ComplexSelectorChild, ComponentValue, CompoundSelector, Declaration, InterpolableIdent, NthIndex,
    PseudoClassSelectorArgKind, SimpleSelector, Statement, TypeSelector,
};
use raffia::pos::{Span, Spanned};
use raffia::{Parser, Syntax};

/// Rules of one sheet.
const RULES_MAX: usize = 500;
/// Parts of one selector.
const PARTS_MAX: usize = 16;
/// How deep brackets may be nested: a rule's own, and those of a selector.
const DEPTH_MAX: usize = 3;
/// Largest number, in pixels or per cent.
const NUMBER_MAX: f32 = 100_000.0;

/// Why a sheet cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("line {line}, column {column}: {what}")]
pub struct Problem {
    /// From 1.
    pub line: usize,
    /// In characters, from 1.
    pub column: usize,
    /// What is wrong.
    pub what: String,
}

/// A sheet that can be used.
#[derive(Debug, Clone, PartialEq)]
pub struct Stylesheet {
    rules: Vec<Rule>,
}

#[derive(Debug, Clone, PartialEq)]
struct Rule {
    selectors: Vec<Selector>,
    declarations: Vec<(Property, bool)>,
}

/// Compound selectors from the right to the left, each with how the next one stands to it.
#[derive(Debug, Clone, PartialEq)]
struct Selector {
    last: Compound,
    before: Vec<(Beside, Compound)>,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Beside {
    /// `+`
    Next,
    /// `~`
    Later,
}

#[derive(Debug, Clone, PartialEq, Default)]
struct Compound {
    classes: Vec<String>,
    /// `an+b`, counted from the front or from the back.
    places: Vec<(i32, i32, bool)>,
    is_stream: bool,
}

/// A length.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    /// What the others leave, or the picture's own shape.
    Auto,
    /// Pixels of the composed picture.
    Pixels(f32),
    /// Share of the frame, 1 is all of it.
    Share(f32),
}

/// An edge of a box.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Edge {
    Left,
    Right,
    Top,
    Bottom,
}

/// One declaration.
#[derive(Debug, Clone, Copy, PartialEq)]
#[allow(missing_docs)]
pub enum Property {
    Width(Length),
    Height(Length),
    MinWidth(Length),
    MinHeight(Length),
    MaxWidth(Length),
    MaxHeight(Length),
    Inset(Edge, Length),
    Margin(Edge, Length),
    ZIndex(Option<i32>),
    Absolute(bool),
    Inline(bool),
    Float(Option<Edge>),
    /// Left floats, right floats.
    Clear(bool, bool),
    Cover(bool),
}

/// A stream among its siblings, for selectors.
#[derive(Debug, Clone, Copy)]
pub struct Sibling<'a> {
    /// Its layout classes.
    pub classes: &'a [String],
}

impl Stylesheet {
    /// Reads a sheet.
    ///
    /// # Errors
    /// See [`Problem`].
    pub fn parse(text: &str) -> Result<Self, Problem> {
        let text = fenced(text)?;
        let text = text.as_str();
        let at = |span: Span, what: &str| problem(text, span.start, what);
        // What gets through the fence and makes the parser panic all the same is a sheet that cannot be used, too.
        let parsed = catch_unwind(|| Parser::new(text, Syntax::Css).parse::<raffia::ast::Stylesheet<'_>>());
        let parsed = parsed.map_err(|_| problem(text, 0, "this is no CSS that can be read"))?;
        let sheet = parsed.map_err(|error| at(error.span.clone(), &error.kind.to_string()))?;
        let mut rules = Vec::new();
        for statement in &sheet.statements {
            let Statement::QualifiedRule(rule) = statement else {
                return Err(at(statement.span().clone(), "only rules such as `stream { width: 50% }` can be used"));
            };
            let selectors = rule.selector.selectors.iter().map(|s| selector(text, &s.children, &s.span));
            let selectors = selectors.collect::<Result<_, _>>()?;
            let mut declarations = Vec::new();
            for statement in &rule.block.statements {
                let Statement::Declaration(declaration) = statement else {
                    return Err(at(
                        statement.span().clone(),
                        "only declarations such as `width: 50%` can be used here",
                    ));
                };
                let important = declaration.important.is_some();
                declarations.extend(properties(text, declaration)?.into_iter().map(|p| (p, important)));
            }
            rules.push(Rule { selectors, declarations });
            if rules.len() > RULES_MAX {
                return Err(at(rule.span.clone(), &format!("there are more than {RULES_MAX} rules")));
            }
        }
        Ok(Self { rules })
    }

    /// The declarations for one of the streams, the weakest first.
    #[must_use]
    pub fn of(&self, siblings: &[Sibling<'_>], stream: usize) -> Vec<Property> {
        let mut found: Vec<(bool, (usize, usize), usize, Property)> = Vec::new();
        for (order, rule) in self.rules.iter().enumerate() {
            let matching = rule.selectors.iter().filter(|s| s.matches(siblings, stream));
            let Some(strength) = matching.map(Selector::strength).max() else { continue };
            found.extend(rule.declarations.iter().map(|(p, important)| (*important, strength, order, *p)));
        }
        // Stable: of one rule's the later ones count.
        found.sort_by_key(|(important, strength, order, _)| (*important, *strength, *order));
        found.into_iter().map(|(.., property)| property).collect()
    }
}

impl Selector {
    fn matches(&self, siblings: &[Sibling<'_>], stream: usize) -> bool {
        self.last.matches(siblings, stream) && matches_before(&self.before, siblings, stream)
    }

    /// Classes and places, then types.
    fn strength(&self) -> (usize, usize) {
        let all = std::iter::once(&self.last).chain(self.before.iter().map(|(_, compound)| compound));
        all.fold((0, 0), |(classes, types), c| {
            (classes + c.classes.len() + c.places.len(), types + usize::from(c.is_stream))
        })
    }
}

fn matches_before(before: &[(Beside, Compound)], siblings: &[Sibling<'_>], stream: usize) -> bool {
    let Some(((beside, compound), rest)) = before.split_first() else { return true };
    let candidates = match beside {
        Beside::Next => stream.saturating_sub(1)..stream,
        Beside::Later => 0..stream,
    };
    candidates.into_iter().any(|n| compound.matches(siblings, n) && matches_before(rest, siblings, n))
}

impl Compound {
    fn matches(&self, siblings: &[Sibling<'_>], stream: usize) -> bool {
        let count = i32::try_from(siblings.len()).unwrap_or(i32::MAX);
        let front = i32::try_from(stream).unwrap_or(i32::MAX) + 1;
        let is_at = |&(a, b, back): &(i32, i32, bool)| {
            let ahead = i64::from(if back { count - front + 1 } else { front }) - i64::from(b);
            if a == 0 { ahead == 0 } else { ahead % i64::from(a) == 0 && ahead / i64::from(a) >= 0 }
        };
        self.classes.iter().all(|class| siblings[stream].classes.contains(class)) && self.places.iter().all(is_at)
    }
}

/// A problem at a byte.
fn problem(text: &str, at: usize, what: &str) -> Problem {
    let before = text.get(..at).unwrap_or(text);
    let line = before.matches('\n').count() + 1;
    let column = before.rsplit('\n').next().unwrap_or("").chars().count() + 1;
    Problem { line, column, what: what.to_owned() }
}

/// A sheet without comments, in which brackets are closed, and without what no layout needs. The parser (raffia 0.13)
/// would never come to an end behind a bracket that is not closed, panics at some escapes and signs, and recurses.
fn fenced(text: &str) -> Result<String, Problem> {
    let mut bytes = text.as_bytes().to_vec();
    while let Some(begin) = bytes.windows(2).position(|two| two == b"/*") {
        let end = bytes[begin + 2..].windows(2).position(|two| two == b"*/");
        let end = begin + 4 + end.ok_or_else(|| problem(text, begin, "this comment has no end"))?;
        bytes[begin..end].iter_mut().filter(|byte| **byte != b'\n').for_each(|byte| *byte = b' ');
    }
    let mut open = Vec::new();
    for (at, byte) in bytes.iter().enumerate() {
        let closes = match byte {
            b'{' | b'(' => {
                open.push((at, *byte));
                true
            }
            b'}' => open.pop().is_some_and(|(_, bracket)| bracket == b'{'),
            b')' => open.pop().is_some_and(|(_, bracket)| bracket == b'('),
            b'[' | b']' | b'\\' | b'"' | b'\'' | b'`' => {
                return Err(problem(text, at, "square brackets, quotes and escapes cannot be used"));
            }
            b'$' | b'^' | b'&' | b'|' | b'?' | b'=' | b'<' => {
                return Err(problem(text, at, "this character cannot be used"));
            }
            b'-' if !is_sign(at.checked_sub(1).and_then(|at| bytes.get(at)), bytes.get(at + 1)) => {
                return Err(problem(text, at, "this sign belongs to nothing"));
            }
            b'\n' | b'\r' | b'\t' | b' '..=b'~' => true,
            _ => return Err(problem(text, at, "only ASCII can be used")),
        };
        if !closes {
            return Err(problem(text, at, "this bracket closes nothing"));
        }
        if open.len() > DEPTH_MAX {
            return Err(problem(text, at, "brackets are nested too deep"));
        }
    }
    if let Some((at, _)) = open.pop() {
        return Err(problem(text, at, "this bracket is not closed"));
    }
    // Only ASCII is left, and spaces for comments.
    Ok(String::from_utf8(bytes).unwrap_or_default())
}

/// Whether a minus can stand between these two: in a name, before a number, or by itself as in `2n - 1`.
fn is_sign(before: Option<&u8>, after: Option<&u8>) -> bool {
    let begins_name = before.is_some_and(|before| b".#@".contains(before));
    let goes_on = |after: &u8| match after {
        b'0'..=b'9' | b'.' => !begins_name,
        _ => after.is_ascii_alphabetic() || b"-_".contains(after),
    };
    let alone = |around: Option<&u8>| around.is_some_and(u8::is_ascii_whitespace);
    before != Some(&b'+') && (after.is_some_and(goes_on) || alone(before) && alone(after))
}

fn literal<'a>(text: &str, ident: &'a InterpolableIdent<'_>) -> Result<&'a str, Problem> {
    match ident {
        InterpolableIdent::Literal(ident) => Ok(&ident.name),
        _ => Err(problem(text, ident.span().start, "this is no CSS")),
    }
}

fn selector(text: &str, children: &[ComplexSelectorChild<'_>], span: &Span) -> Result<Selector, Problem> {
    if children.len() > PARTS_MAX {
        return Err(problem(text, span.start, "this selector has too many parts"));
    }
    let (mut compounds, mut beside) = (Vec::new(), Vec::new());
    for child in children {
        match child {
            ComplexSelectorChild::CompoundSelector(found) => compounds.push(compound(text, found)?),
            ComplexSelectorChild::Combinator(combinator) => beside.push(match combinator.kind {
                CombinatorKind::NextSibling => Beside::Next,
                CombinatorKind::LaterSibling => Beside::Later,
                _ => {
                    let what = "streams have no children: only + and ~ can stand between selectors";
                    return Err(problem(text, combinator.span.start, what));
                }
            }),
        }
    }
    let Some(last) = compounds.pop().filter(|_| compounds.len() == beside.len()) else {
        return Err(problem(text, span.start, "this selector lacks a part"));
    };
    let before = beside.into_iter().rev().zip(compounds.into_iter().rev()).collect();
    Ok(Selector { last, before })
}

fn compound(text: &str, found: &CompoundSelector<'_>) -> Result<Compound, Problem> {
    let mut compound = Compound::default();
    for part in &found.children {
        let refused = |what: &str| problem(text, part.span().start, what);
        match part {
            SimpleSelector::Type(TypeSelector::TagName(tag)) => {
                if tag.name.prefix.is_some() || !literal(text, &tag.name.name)?.eq_ignore_ascii_case("stream") {
                    return Err(refused("the only elements are called stream"));
                }
                compound.is_stream = true;
            }
            SimpleSelector::Class(class) => compound.classes.push(literal(text, &class.name)?.to_owned()),
            SimpleSelector::PseudoClass(pseudo) => {
                let name = literal(text, &pseudo.name)?.to_ascii_lowercase();
                let nth = pseudo.arg.as_ref().map(|arg| match &arg.kind {
                    PseudoClassSelectorArgKind::Nth(nth) if nth.matcher.is_none() => match &nth.index {
                        NthIndex::Odd(_) => Some((2, 1)),
                        NthIndex::Even(_) => Some((2, 0)),
                        NthIndex::Integer(number) => Some((0, number.raw.parse().ok()?)),
                        NthIndex::AnPlusB(nth) => Some((nth.a, nth.b)),
                    },
                    _ => None,
                });
                compound.places.push(match (name.as_str(), nth) {
                    ("first-child", None) => (0, 1, false),
                    ("last-child", None) => (0, 1, true),
                    ("nth-child", Some(Some((a, b)))) => (a, b, false),
                    ("nth-last-child", Some(Some((a, b)))) => (a, b, true),
                    _ => {
                        let what =
                            ":first-child, :last-child, :nth-child(n) and :nth-last-child(n) can be used, no others";
                        return Err(refused(what));
                    }
                });
            }
            _ => return Err(refused("stream, classes and places such as :first-child can be used, nothing else")),
        }
    }
    Ok(compound)
}

/// What a declaration says; a shorthand says several things.
fn properties(text: &str, declaration: &Declaration<'_>) -> Result<Vec<Property>, Problem> {
    let name = literal(text, &declaration.name)?.to_ascii_lowercase();
    let refused = |what: String| problem(text, declaration.span.start, &what);
    let values = &declaration.value;
    let one = || match &values[..] {
        [value] => Ok(value),
        _ => Err(refused(format!("{name} takes one value"))),
    };
    let length = |auto: &'static str| one().and_then(|value| length(text, value, &[auto]));
    let word = |allowed: &[&'static str]| one().and_then(|value| word(text, value, allowed));
    let property = match name.as_str() {
        "width" => Property::Width(length("auto")?),
        "height" => Property::Height(length("auto")?),
        "min-width" => Property::MinWidth(length("auto")?),
        "min-height" => Property::MinHeight(length("auto")?),
        "max-width" => Property::MaxWidth(length("none")?),
        "max-height" => Property::MaxHeight(length("none")?),
        "margin" => return margins(text, values).ok_or_else(|| refused("margin takes one to four lengths".to_owned())),
        "z-index" => Property::ZIndex(match one()? {
            ComponentValue::Number(number) => match number.raw.parse::<i32>() {
                Ok(z) if z.abs() <= 10_000 => Some(z),
                _ => return Err(refused("z-index is a whole number from -10000 to 10000".to_owned())),
            },
            _ => word(&["auto"]).map(|_| None)?,
        }),
        "position" => Property::Absolute(word(&["relative", "absolute"])? == "absolute"),
        "display" => Property::Inline(word(&["block", "inline", "inline-block"])? != "block"),
        "float" => Property::Float(match word(&["left", "right", "none"])? {
            "left" => Some(Edge::Left),
            "right" => Some(Edge::Right),
            _ => None,
        }),
        "clear" => match word(&["left", "right", "both", "none"])? {
            "left" => Property::Clear(true, false),
            "right" => Property::Clear(false, true),
            "both" => Property::Clear(true, true),
            _ => Property::Clear(false, false),
        },
        "object-fit" => Property::Cover(word(&["contain", "cover"])? == "cover"),
        // That is how it is.
        "overflow" => return word(&["hidden"]).map(|_| Vec::new()),
        other => {
            let edge = |prefix: &str| {
                [("left", Edge::Left), ("right", Edge::Right), ("top", Edge::Top), ("bottom", Edge::Bottom)]
                    .into_iter()
                    .find_map(|(name, edge)| (other.strip_prefix(prefix) == Some(name)).then_some(edge))
            };
            match (edge(""), edge("margin-")) {
                (Some(edge), _) => Property::Inset(edge, length("auto")?),
                (None, Some(edge)) => Property::Margin(edge, length("auto")?),
                (None, None) => return Err(refused(format!("{other} cannot be used in a layout"))),
            }
        }
    };
    Ok(vec![property])
}

/// The four margins of a shorthand: above, right, below, left.
fn margins(text: &str, values: &[ComponentValue<'_>]) -> Option<Vec<Property>> {
    let lengths: Vec<Length> = values.iter().map(|value| length(text, value, &["auto"]).ok()).collect::<Option<_>>()?;
    let [top, right, bottom, left] = match lengths[..] {
        [all] => [all; 4],
        [vertical, horizontal] => [vertical, horizontal, vertical, horizontal],
        [top, horizontal, bottom] => [top, horizontal, bottom, horizontal],
        [top, right, bottom, left] => [top, right, bottom, left],
        _ => return None,
    };
    let edges = [(Edge::Top, top), (Edge::Right, right), (Edge::Bottom, bottom), (Edge::Left, left)];
    Some(edges.into_iter().map(|(edge, length)| Property::Margin(edge, length)).collect())
}

fn word(text: &str, value: &ComponentValue<'_>, allowed: &[&'static str]) -> Result<&'static str, Problem> {
    let found = match value {
        ComponentValue::InterpolableIdent(InterpolableIdent::Literal(ident)) => {
            allowed.iter().find(|word| ident.name.eq_ignore_ascii_case(word))
        }
        _ => None,
    };
    found
        .copied()
        .ok_or_else(|| problem(text, value.span().start, &format!("one of {} belongs here", allowed.join(", "))))
}

fn length(text: &str, value: &ComponentValue<'_>, auto: &[&'static str]) -> Result<Length, Problem> {
    let refused = |what: &str| problem(text, value.span().start, what);
    let (number, length): (f32, fn(f32) -> Length) = match value {
        ComponentValue::Dimension(d) if d.unit.name.eq_ignore_ascii_case("px") => (d.value.value, Length::Pixels),
        ComponentValue::Percentage(p) => (p.value.value, |n| Length::Share(n / 100.0)),
        ComponentValue::Number(n) if n.value == 0.0 => (0.0, Length::Pixels),
        ComponentValue::InterpolableIdent(_) => return word(text, value, auto).map(|_| Length::Auto),
        _ => return Err(refused("a length is in px or per cent")),
    };
    if !(-NUMBER_MAX..=NUMBER_MAX).contains(&number) {
        return Err(refused("this number is too large"));
    }
    Ok(length(number))
}

#[cfg(test)]
#[path = "stylesheet_tests.rs"]
mod tests;
