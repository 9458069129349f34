/** The Edge Function hlf-dynamics-sync: sets in Dynamics 365 who is visible on HLF's portal, as certjob asks. */

import { readConfig } from "./config.ts";
import { makeHandler } from "./handler.ts";

Deno.serve(makeHandler(readConfig((name) => Deno.env.get(name))));
