// The coordinators' page: reads the view certjob.alerts as the logged-in user, and shows it in the user's language.

const project = document.getElementById("project").dataset;
const supabase = globalThis.supabase.createClient(project.url, project.key, { db: { schema: "certjob" } });
const words = await (await fetch("words.json")).json();
const DATES = { nb: "nb-NO", nn: "nb-NO", en: "en-GB" }; // few browsers know nn, which writes dates like nb
const EVERY_30_SECONDS = 30_000;
const COLUMNS =
  "alert_id, kind, organisation, mentor_id, member_no, full_name, sentence, cause, action, state, since, " +
  "next_attempt_at, number, fingerprint";
// The sections of the page in order, with the kinds of alerts in each. Other kinds come last.
const SECTIONS = {
  visible: ["may_be_visible"],
  held: ["held"],
  unreviewed: ["never_reviewed"],
  hidden: ["may_be_hidden"],
  undelivered: ["failed_reminders", "waiting_reminders"],
};
const RETRIED = ["retry", "check_contact"]; // the actions after which another attempt can help

const $ = (id) => document.getElementById(id);
const answers = new Map(); // what the page answered to a button, by alert
let language = "en";
let shown = { alerts: null, count: 0, at: null };
let me = null; // the user's id
let channel = null;

const say = (name, ...values) => fill(words[language].page[name], ...values);
const fill = (text, ...values) => values.reduce((filled, value) => filled.replace("{}", value), text);
const plural = (texts, number) => fill(texts[number === 1 ? 0 : 1], number);
const day = (time, more = {}) =>
  new Intl.DateTimeFormat(DATES[language], { dateStyle: "long", ...more }).format(new Date(time));
const moment = (time) => day(time, { timeStyle: "short" });

function element(name, properties = {}, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children.filter(Boolean));
  return made;
}

function speak(wanted) {
  language = [wanted, ...navigator.languages].map((each) => each?.slice(0, 2).replace("no", "nb"))
    .find((each) => each in words) ?? "en";
  document.documentElement.lang = language;
  document.title = say("title");
  for (const each of document.querySelectorAll("[data-say]")) each.textContent = say(each.dataset.say);
}

async function readAlerts() {
  const { data, count, error } = await supabase.from("alerts").select(COLUMNS, { count: "exact" }).order("since");
  if (error) throw error;
  const { data: holds } = await supabase.from("held_reviews").select("what, mentors");
  const mentors = (alert) => holds?.find((each) => each.what === alert.cause)?.mentors ?? alert.number;
  const alerts = data.map((alert) => alert.kind === "held" ? { ...alert, number: mentors(alert) } : alert);
  return { alerts, count, at: Date.now() };
}

let reading = Promise.resolve();
function refresh() {
  reading = reading.then(async () => {
    if (!me) return;
    try {
      if (!navigator.onLine) throw new Error("offline");
      shown = await readAlerts();
      show();
    } catch (error) {
      showProblem(error);
    }
  });
  return reading;
}

// Realtime reports new failures. It does not report their end, and connections break, so the page also reads regularly.
function watch() {
  const of = (event) => ({ event, schema: "certjob", table: "dynamics_sync_failures" });
  channel = supabase.channel("alerts")
    .on("postgres_changes", of("INSERT"), refresh)
    .on("postgres_changes", of("UPDATE"), refresh)
    .subscribe((status) => status === "SUBSCRIBED" && refresh());
}

const refreshIfSeen = () => document.visibilityState === "visible" && refresh();
setInterval(refreshIfSeen, EVERY_30_SECONDS);
document.addEventListener("visibilitychange", refreshIfSeen);
addEventListener("online", refresh);
addEventListener("offline", refresh);

async function retry(alert) {
  const { data, error } = await supabase.rpc("request_portal_resync", { mentor_id: alert.mentor_id });
  if (error) throw error;
  return say("retried")[data.visible ? 1 : 0];
}

async function correctContact(alert, { contact_id }) {
  const change = { dynamics_contact_id: contact_id.trim() };
  const { error } = await supabase.from("mentors").update(change).eq("id", alert.mentor_id);
  if (error?.code === "23505") throw new Error(say("taken"));
  if (error) throw error;
  return say("saved");
}

async function acknowledge({ alert_id, fingerprint }, { because, until }) {
  const { error } = await supabase.rpc("acknowledge_alert", { alert_id, fingerprint, because, until });
  if (error) throw error;
  return say("acknowledged", day(until));
}

// Call the function of a form, show its answer in the card, and read the alerts again.
async function run(alert, button, act, values) {
  button.disabled = true;
  try {
    answers.set(alert.alert_id, { text: await act(alert, values), good: true });
  } catch (error) {
    const reason = [error.message, error.hint].filter(Boolean).join("; ");
    const text = error instanceof TypeError ? say("no_answer") : error.code ? say("not_done", reason) : reason;
    answers.set(alert.alert_id, { text, good: false });
  }
  await refresh();
  show();
  $("status").textContent = answers.get(alert.alert_id).text;
}

function show() {
  if (!me || !shown.alerts) return;
  const { alerts, count } = shown;
  const known = Object.values(SECTIONS).flat();
  const sections = { ...SECTIONS, other: alerts.map((each) => each.kind).filter((kind) => !known.includes(kind)) };
  const cards = new Map([...document.querySelectorAll(".card")].map((card) => [card.dataset.alert, card]));
  const focus = document.activeElement?.closest(".card") && document.activeElement;
  const parts = Object.entries(sections).flatMap(([name, kinds]) => {
    const own = alerts.filter((each) => kinds.includes(each.kind));
    return own.length ? [section(name, own, cards)] : [];
  });
  $("list").replaceChildren(...parts);
  $("list").ariaBusy = "false";
  setStatus(count ? plural(words[language].page.count, count) : say("empty"));
  if (count > alerts.length) $("list").append(element("p", {}, fill(words[language].more, count - alerts.length)));
  if (focus) restoreFocus(focus);
}

function section(name, alerts, cards) {
  const { headings, intros } = words[language];
  const heading = element("h2", {}, `${headings[name] ?? say("other")} (${alerts.length})`);
  const mayWait = alerts.every((alert) => alert.cause === "later_day_on_portal");
  const intro = intros[name] && !mayWait && element("p", { className: "quiet" }, intros[name]);
  const list = element("ul", {}, ...alerts.map((alert) => card(name, alert, cards.get(alert.alert_id))));
  return element("section", {}, heading, intro, list);
}

// Keep the element of an unchanged alert, because someone may be typing in it.
function card(name, alert, old) {
  const answer = answers.get(alert.alert_id);
  const state = JSON.stringify([language, alert, answer]);
  if (old?.dataset.state === state) return old;
  const { causes, since } = words[language];
  const cause = causes[alert.cause];
  const number = alert.member_no && alert.full_name !== alert.member_no && element("small", {}, ` ${alert.member_no}`);
  const made = element(
    "li",
    { className: `card ${name}` },
    element("h3", {}, alert.full_name ?? alert.organisation.toUpperCase(), number),
    ["visible", "other"].includes(name) && element("p", { className: "sentence", lang: "en" }, alert.sentence),
    cause && element("p", {}, Array.isArray(cause) ? plural(cause, alert.number) : cause),
    element("p", { className: "quiet" }, capital(fill(since, moment(alert.since))), ". ", next(alert)),
    answer && element("p", { className: answer.good ? "answer" : "problem" }, answer.text),
    ...actions(alert, old),
  );
  Object.assign(made.dataset, { alert: alert.alert_id, state });
  return made;
}

const capital = (text) => text[0].toUpperCase() + text.slice(1);

function next({ action, state, next_attempt_at }) {
  if (state === "being_sent" || state === "due") return say(state);
  const waits = state === "waiting" && ["wait", "retry"].includes(action);
  return waits && next_attempt_at ? say("next_try", moment(next_attempt_at)) : "";
}

function actions(alert, old) {
  const found = [];
  if (RETRIED.includes(alert.action)) found.push(form(alert, old, retry, say("retry")));
  if (alert.action === "correct_contact_id") {
    const pattern = "\\s*[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\\s*";
    const input = { name: "contact_id", required: true, pattern, title: say("contact_form"), autocomplete: "off" };
    found.push(form(alert, old, correctContact, say("save"), [say("contact_id"), input]));
  }
  if (alert.mentor_id && alert.kind !== "never_reviewed") {
    const limits = { min: inDays(0), max: inDays(31), value: inDays(7) };
    const because = [say("because"), { name: "because", required: true, maxLength: 1000, autocomplete: "off" }];
    const until = [say("until"), { name: "until", type: "date", required: true, ...limits }];
    const fields = form(alert, old, acknowledge, say("acknowledge"), because, until);
    const open = old?.querySelector("details")?.open ?? false;
    found.push(element("details", { open }, element("summary", {}, say("acknowledge")), fields));
  }
  return found;
}

const inDays = (days) => new Date(Date.now() + days * 86_400_000).toISOString().slice(0, 10);

// A form with labelled inputs; what someone has typed into the former card stays.
function form(alert, old, act, send, ...fields) {
  const button = element("button", { name: act.name }, send);
  const labels = fields.map(([text, input]) => {
    const typed = old?.querySelector(`[name=${input.name}]`)?.value;
    return element("label", {}, text, element("input", { ...input, value: typed ?? input.value ?? "" }));
  });
  const made = element("form", {}, ...labels, button);
  made.onsubmit = (event) => {
    event.preventDefault();
    run(alert, button, act, Object.fromEntries(new FormData(made)));
  };
  return made;
}

// A changed card is a new element: focus its counterpart, or the heading if the alert is over.
function restoreFocus(old) {
  if (old.isConnected) return old.focus();
  const { alert } = old.closest(".card").dataset;
  const now = [...document.querySelectorAll(".card")].find((each) => each.dataset.alert === alert);
  (now?.querySelector(`[name=${old.name}]`) ?? document.querySelector("h1")).focus();
}

function setStatus(text, isProblem = false) {
  $("status").className = isProblem ? "problem" : "";
  if ($("status").textContent !== text) $("status").textContent = text; // else it would be read out again
}

function showProblem(error) {
  if (!navigator.onLine && shown.at) return setStatus(say("offline", moment(shown.at)), true);
  setStatus(`${say("failed")} ${error.code ? error.message : ""}`.trim(), true);
}

$("login").onsubmit = async (event) => {
  event.preventDefault();
  const button = event.target.querySelector("button");
  button.disabled = true;
  setStatus("");
  const { error } = await supabase.auth.signInWithPassword(Object.fromEntries(new FormData(event.target)));
  button.disabled = false;
  if (error) setStatus(error.status === 400 ? say("no_login") : say("no_answer"), true);
};
$("leave").onclick = () => supabase.auth.signOut({ scope: "local" });

async function enter(user) {
  me = user.id;
  $("login").hidden = true;
  $("login").reset();
  $("leave").hidden = false;
  $("who").textContent = user.email;
  $("list").ariaBusy = "true";
  setStatus(say("loading"));
  const { data, error } = await supabase.from("coordinators").select("locale").eq("id", me).maybeSingle();
  if (!error) speak(data?.locale);
  if (!error && !data) return setStatus(say("no_coordinator"), true);
  await refresh();
  watch();
}

function leave() {
  if (channel) supabase.removeChannel(channel);
  [me, channel, shown] = [null, null, { alerts: null, count: 0, at: null }];
  answers.clear();
  $("login").hidden = false;
  $("leave").hidden = true;
  $("who").textContent = "";
  $("list").replaceChildren();
  setStatus("");
  speak();
}

speak();
// supabase-js holds a lock during this call, so requests begin after it.
supabase.auth.onAuthStateChange((_event, session) => {
  if (session?.user.id !== me || !session) setTimeout(() => session ? enter(session.user) : leave(), 0);
});
