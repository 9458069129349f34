// The coordinators' page: reads the view certjob.alerts as the logged-in user, and shows it in the user's language.

const project = document.getElementById("project").dataset;
const words = await (await fetch("words.json")).json();
const DATES = { nb: "nb-NO", nn: "nb-NO", en: "en-GB" }; // few browsers know nn, which writes dates like nb
const COLUMNS =
  "alert_id, kind, organisation, mentor_id, member_no, full_name, sentence, cause, action, state, since, " +
  "next_attempt_at, number, can_confirm_hidden";
// The sections of the page in order, with the kinds of alerts in each. Other kinds come last.
const SECTIONS = {
  visible: ["may_be_visible"],
  held: ["held"],
  unreviewed: ["never_reviewed"],
  hidden: ["may_be_hidden"],
  undelivered: ["failed_reminders", "waiting_reminders"],
};

const $ = (id) => document.getElementById(id);
const answers = new Map(); // what the page answered to a button, by alert
const nothing = { coordinator: null, alerts: null, count: 0, at: null };
let supabase = null;
let language = "en";
let shown = nothing;
let me = null; // the user's id
let channel = null;

const say = (name, ...values) => fill(words[language].page[name], ...values);
const fill = (text, ...values) => values.reduce((filled, value) => filled.replace("{}", value), text);
const plural = (texts, number) => fill(texts[number === 1 ? 0 : 1], number);
const moment = (time) =>
  new Intl.DateTimeFormat(DATES[language], { dateStyle: "long", timeStyle: "short" }).format(new Date(time));

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

// Return the data of an answer, or throw its error with the HTTP status.
function dataOf({ data, error, status }) {
  if (error) throw Object.assign(error, { status });
  return data;
}

// No row of alerts means that everything is in order only for a coordinator: others may read none.
async function readAlerts(user) {
  const read = (compare) =>
    supabase.from("alerts").select(COLUMNS, { count: "exact" })[compare]("kind", "may_be_visible").order("since");
  const [own, worst, others] = await Promise.all([
    supabase.from("coordinators").select("locale").eq("id", user).maybeSingle(),
    read("eq"), // on their own, because the API returns a limited number of rows
    read("neq"),
  ]);
  const alerts = [...dataOf(worst), ...dataOf(others)];
  return { coordinator: dataOf(own), alerts, count: worst.count + others.count, at: Date.now() };
}

let reading = Promise.resolve();
function refresh() {
  reading = reading.then(async () => {
    const user = me;
    if (!user) return;
    try {
      if (!navigator.onLine) throw new Error("offline");
      const read = await readAlerts(user);
      if (me !== user) return;
      if (read.coordinator?.locale !== shown.coordinator?.locale) speak(read.coordinator?.locale);
      shown = read;
      show();
    } catch (error) {
      if (me === user) showProblem(error);
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
setInterval(refreshIfSeen, 30_000);
document.addEventListener("visibilitychange", refreshIfSeen);
for (const event of ["online", "offline"]) addEventListener(event, refresh);

async function retry(alert) {
  const { visible } = dataOf(await supabase.rpc("request_portal_resync", { mentor_id: alert.mentor_id }).single());
  return say("retried")[visible ? 1 : 0];
}

async function correctContact(alert, { contact_id }) {
  const change = { dynamics_contact_id: contact_id.trim() };
  const answer = await supabase.from("mentors").update(change).eq("id", alert.mentor_id).select("id");
  if (answer.error?.code === "23505") throw new Error(say("taken"));
  if (!dataOf(answer).length) throw new Error(say("not_saved"));
  return say("saved");
}

async function confirmHidden({ mentor_id }, { because }) {
  dataOf(await supabase.rpc("confirm_hidden", { mentor_id, because }));
  return say("confirmed");
}

// Identifies the attempt that an alert is about.
const attempt = ({ state, since, next_attempt_at }) => JSON.stringify([state, since, next_attempt_at]);

// Call the function of a form, read the alerts again, and show its answer in the card until the next attempt.
async function run(alert, button, act, values) {
  button.disabled = true;
  const answer = await act(alert, values).then((text) => ({ text, good: true }), (error) => {
    const reason = [error.message, error.hint].filter(Boolean).join("; ");
    const isSilent = error.status === 0 || error instanceof TypeError;
    return { text: isSilent ? say("no_answer") : error.code ? say("not_done", reason) : reason, good: false };
  });
  await refresh();
  button.disabled = false;
  if (!me) return;
  const now = shown.alerts?.find((each) => each.alert_id === alert.alert_id);
  if (now) answers.set(alert.alert_id, { ...answer, about: attempt(now) });
  show();
  $("status").textContent = answer.text;
}

function show() {
  if (!me || !shown.alerts) return;
  const { coordinator, alerts, count } = shown;
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
  const more = count > alerts.length && fill(words[language].more, count - alerts.length);
  const number = [plural(words[language].page.count, alerts.length), more].filter(Boolean).join(" ");
  setStatus(!coordinator ? say("no_coordinator") : count ? number : say("empty"), !coordinator);
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
  const known = answers.get(alert.alert_id);
  const answer = known?.about === attempt(alert) && known;
  const state = JSON.stringify([language, alert, answer]);
  if (old?.dataset.state === state) return old;
  const { causes, since } = words[language];
  const [cause, start] = [causes[alert.cause], fill(since, moment(alert.since))];
  const number = alert.member_no && alert.full_name !== alert.member_no && element("small", {}, ` ${alert.member_no}`);
  const id = encodeURIComponent(alert.alert_id); // an id has no spaces
  const made = element(
    "li",
    { className: `card ${name}` },
    element("h3", { id }, alert.full_name ?? alert.organisation.toUpperCase(), number),
    ["visible", "other"].includes(name) && element("p", { className: "sentence", lang: "en" }, alert.sentence),
    cause && element("p", {}, Array.isArray(cause) ? plural(cause, alert.number) : cause),
    element("p", { className: "quiet" }, start[0].toUpperCase(), start.slice(1), ". ", next(alert)),
    answer && element("p", { className: answer.good ? "answer" : "problem" }, answer.text),
    ...actions(alert, old),
  );
  for (const each of made.querySelectorAll("button, summary, input")) each.setAttribute("aria-describedby", id);
  Object.assign(made.dataset, { alert: alert.alert_id, state });
  return made;
}

function next({ action, state, next_attempt_at }) {
  if (state === "being_sent" || state === "due") return say(state);
  const waits = state === "waiting" && ["wait", "retry"].includes(action);
  return waits && next_attempt_at ? say("next_try", moment(next_attempt_at)) : "";
}

function actions(alert, old) {
  const found = [];
  if (["retry", "check_contact"].includes(alert.action)) found.push(form(alert, old, retry, say("retry")));
  if (alert.action === "correct_contact_id") {
    const pattern = "\\s*[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\\s*";
    const input = { name: "contact_id", required: true, pattern, title: say("contact_form"), autocomplete: "off" };
    found.push(form(alert, old, correctContact, say("save"), [say("contact_id"), input]));
  }
  if (alert.can_confirm_hidden || old?.querySelector("[name=because]")?.value) { // someone may be typing
    const input = { name: "because", required: true, pattern: ".*\\S.*", maxLength: 1000, autocomplete: "off" };
    const fields = form(alert, old, confirmHidden, say("confirm"), [say("because"), input]);
    const open = old?.querySelector("details")?.open ?? false;
    found.push(element("details", { open }, element("summary", {}, say("hidden_by_hand")), fields));
  }
  return found;
}

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
  (now?.querySelector(old.name ? `[name=${old.name}]` : "summary") ?? document.querySelector("h1")).focus();
}

function setStatus(text, isProblem = false) {
  $("status").className = isProblem ? "problem" : "";
  if ($("status").textContent !== text) $("status").textContent = text; // else it would be read out again
}

function showProblem(error) {
  if (error.status === 401) return leave(), logOut();
  if (!navigator.onLine && shown.at) return setStatus(say("offline", moment(shown.at)), true);
  setStatus(`${say("failed")} ${error.code ? error.message : ""}`.trim(), true);
}

$("login").onsubmit = async (event) => {
  event.preventDefault();
  setStatus("");
  const { error } = await supabase.auth.signInWithPassword(Object.fromEntries(new FormData(event.target)));
  if (error) return setStatus(error.status === 400 ? say("no_login") : say("no_answer"), true);
  document.querySelector("h1").focus();
};
async function logOut() {
  const { error } = await supabase.auth.signOut({ scope: "local" });
  if (error) setStatus(say("no_answer"), true);
}
$("leave").onclick = logOut;

async function enter(user) {
  me = user.id;
  $("login").hidden = true;
  $("login").reset();
  $("leave").hidden = false;
  $("who").textContent = user.email;
  $("list").ariaBusy = "true";
  setStatus(say("loading"));
  await refresh();
  if (me === user.id) watch();
}

function leave() {
  if (!me && !$("login").hidden) return;
  if (channel) supabase.removeChannel(channel);
  [me, channel, shown] = [null, null, nothing];
  answers.clear();
  $("login").hidden = false;
  $("leave").hidden = true;
  $("who").textContent = "";
  $("list").replaceChildren();
  speak();
  setStatus(say("logged_out"));
  $("login").elements.email.focus();
}

speak();
try {
  supabase = globalThis.supabase.createClient(project.url, project.key, { db: { schema: "certjob" } });
  // supabase-js holds a lock during this call, so requests begin after it.
  supabase.auth.onAuthStateChange((_event, session) => {
    if (session?.user.id !== me || !session) setTimeout(() => session ? enter(session.user) : leave(), 0);
  });
} catch (error) {
  setStatus(say("no_start", error.message), true);
}
