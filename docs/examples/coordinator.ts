// Requests of a coordinators' page, with supabase-js and generated types; see docs/dashboard.md.
import { createClient } from "@supabase/supabase-js";
import type { Database } from "./database.types.ts";

const supabase = createClient<Database>("https://abcdefgh.supabase.co", "sb_publishable_…");
const certjob = supabase.schema("certjob");

// Return the alerts, or null if the user is not a coordinator.
export async function readAlerts(userId: string) {
  const own = await certjob.from("coordinators").select("id").eq("id", userId).maybeSingle().throwOnError();
  const alerts = await certjob.from("alerts").select().order("since").throwOnError();
  return own.data && alerts.data;
}

export async function retry(mentorId: string) {
  const { data } = await certjob.rpc("request_portal_resync", { mentor_id: mentorId }).single().throwOnError();
  return data.visible;
}

export function watch(refresh: () => void) {
  const failures = { schema: "certjob", table: "dynamics_sync_failures" };
  supabase.channel("alerts")
    .on("postgres_changes", { event: "INSERT", ...failures }, refresh)
    .on("postgres_changes", { event: "UPDATE", ...failures }, refresh)
    .subscribe();
  setInterval(refresh, 30_000);
}
