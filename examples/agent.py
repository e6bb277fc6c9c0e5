"""An agent that works on a task with tools, and every step of it.

Needs a server: `argosy serve`.
"""

import argosy

with argosy.Client() as client:
    print("tools:", ", ".join(tool.name for tool in client.agents.list_tools()))

    budget = argosy.AgentBudget(max_steps=4, max_tokens=400, max_duration=60)
    with client.agents.run("What is 17 * 23 + 4?", budget=budget) as run:
        for event in run:
            match event:
                case argosy.ThoughtDelta():
                    print(event.text, end="", flush=True)
                case argosy.ToolRequested():
                    print(f"\n  calls {event.tool} with {dict(event.arguments)}")
                case argosy.ToolReturned():
                    print(f"  {'fails' if event.is_error else 'sees'}: {event.observation}")
                case argosy.Answer():
                    print(f"\nanswer: {event.text}")
                case argosy.RunFinished():
                    print(f"{event.outcome} after {event.steps} steps and {event.usage.completion_tokens} tokens")
