"""Pages about models and studies: `smec report`."""
