/** The Edge Function hlf-dynamics-sync: certjob says who is visible on HLF's portal, and Dynamics 365 is made to agree. */

import { readConfig } from "./config.ts";
import { makeHandler } from "./handler.ts";

Deno.serve(makeHandler(readConfig((name) => Deno.env.get(name))));
